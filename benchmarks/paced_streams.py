"""Streams at a steady pace: whether every event came, and its lag.

The echo worker reports its start time and sends word `i` after `i / rate` seconds. The client runs on the same machine
and clock, so arrival minus due time is the event's lag.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from benchmarks.load import LoadError, Target
from rbee_serve.events import End, Event, Output, Started
from rbee_serve.grammar import GrammarError, check_stream
from rbee_serve.sse import Decoder

SETTLE_S = 2.0
"""Seconds after the first stream opens until lags are counted."""
TAIL_S = 1.0
"""Seconds that streams continue after the counted time."""
GRACE_S = 20.0
"""Seconds of delay after which a stream counts as one that does not end."""

_BUFFER = 256 * 1024
_LAST_CHUNK = b"\r\n0\r\n\r\n"

Piece = tuple[float, bytes]
"""Bytes of one read from a socket, and its time."""


@dataclass(frozen=True, slots=True)
class Pace:
    """`streams` streams that together send `events_per_s`, measured for `seconds`.

    They are opened one after another at that rate, so that their events are spread out."""

    target: Target
    streams: int
    events_per_s: float
    seconds: float

    @property
    def rate(self) -> float:
        """Events per second of one stream."""
        return self.events_per_s / self.streams

    @property
    def words(self) -> int:
        """Events of each stream."""
        return round((SETTLE_S + self.seconds + TAIL_S) * self.rate)

    def word(self, number: int) -> str:
        """The word of that stream only, so an event in the wrong stream is found."""
        return f"stream-{number}"

    def request(self, number: int) -> bytes:
        """The request that opens that stream."""
        fields = {"prompt": self.word(number), "repeat": self.words, "tokens_per_sec": self.rate}
        return self.target.request(json.dumps(fields).encode())


@dataclass(slots=True)
class Seen:
    """The lag in seconds of each event that was due in the counted time; the faults, a sentence per stream; CPU seconds
    of the client."""

    lags_s: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    client_cpu_s: float = 0.0


class ChunkedBody:
    """Decodes HTTP's chunked transfer encoding, however the reads split it."""

    def __init__(self) -> None:
        self._raw = bytearray()
        self.complete = False

    def feed(self, data: bytes) -> bytes:
        """The content of the chunks that `data` completes."""
        self._raw += data
        body = bytearray()
        while not self.complete:
            size, found, rest = self._raw.partition(b"\r\n")
            length = int(size, 16) if found else 0
            if not found or len(rest) < length + 2:
                break
            body += rest[:length]
            self.complete = length == 0
            self._raw = rest[length + 2 :]
        return bytes(body)


def timed_events(pieces: Iterable[Piece]) -> list[tuple[float, Event[Any]]]:
    """The events of a valid stream, each with the time at which it was complete.

    Raises `LoadError` for a response that is no stream or ends early, `GrammarError` for a stream that breaks a
    rule."""
    head = b""
    chunks, decoder = ChunkedBody(), Decoder()
    body, times = bytearray(), list[float]()
    for at, data in pieces:
        if b"\r\n\r\n" not in head:
            head += data
            _, _, data = head.partition(b"\r\n\r\n")
        part = chunks.feed(data)
        body += part
        times += [at for _ in decoder.feed(part)]
    if not head.startswith(b"HTTP/1.1 200"):
        raise LoadError(f"the stream was refused: {head[:300]!r}")
    if not chunks.complete:
        raise LoadError("the stream has no end")
    events = check_stream(bytes(body))
    return list(zip(times, events, strict=False))  # the marker has a time as well


def lags(pieces: Iterable[Piece], word: str, words: int, rate: float) -> list[tuple[float, float]]:
    """For each event of a stream its due time, and how many seconds later it arrived.

    Raises `LoadError` or `GrammarError` unless the stream has exactly `words` times `word` in order, and its end."""
    events = timed_events(pieces)
    began = due = 0.0
    received: list[str] = []
    late: list[tuple[float, float]] = []
    for at, event in events:
        if isinstance(event, Started):
            began = datetime.fromisoformat(event.started_at).timestamp()
        elif isinstance(event, Output):
            due = began + len(received) / rate
            received.append(event.value.t)
            late.append((due, at - due))
    if received != [word] * words:
        raise LoadError(f"received {len(received)} words, {received.count(word)} of them its own, instead of {words}")
    end = events[-1][1]
    if not isinstance(end, End) or end.tokens_out != words:
        raise LoadError(f"its last event is {end}")
    return late


def read_paced(pace: Pace, begin: float) -> Seen:
    """Open the streams from `begin` on (`time.time`), and read them all to their end."""
    cpu_s = time.process_time()
    read = _read(pace, begin)
    seen = Seen(client_cpu_s=time.process_time() - cpu_s)
    counted_from = begin + SETTLE_S
    for number, pieces in enumerate(read):
        try:
            late = lags(pieces, pace.word(number), pace.words, pace.rate)
        except (LoadError, GrammarError) as exc:
            seen.faults.append(f"stream {number}: {exc}")
        else:
            seen.lags_s += [lag for due, lag in late if counted_from <= due < counted_from + pace.seconds]
    return seen


def _read(pace: Pace, begin: float) -> Sequence[Sequence[Piece]]:
    streams: list[list[Piece]] = []
    last = begin + pace.streams / pace.events_per_s + pace.words / pace.rate + GRACE_S
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        while (now := time.time()) < last:
            all_open = len(streams) == pace.streams
            if all_open and not selector.get_map():
                break
            next_at = last if all_open else begin + len(streams) / pace.events_per_s
            if now >= next_at:
                connection = stack.enter_context(_opened(pace, len(streams)))
                streams.append([])
                selector.register(connection, selectors.EVENT_READ, (connection, streams[-1]))
                continue
            for key, _ in selector.select(next_at - now):
                connection, pieces = key.data
                data = connection.recv(_BUFFER)
                pieces.append((time.time(), data))
                if not data or _is_last(pieces):
                    selector.unregister(connection)
    return streams


def _opened(pace: Pace, number: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", pace.target.port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(pace.request(number))
    return connection


def _is_last(pieces: Sequence[Piece]) -> bool:
    end = b"".join(data for _, data in pieces[-len(_LAST_CHUNK) :])  # each has at least one byte
    return end.endswith(_LAST_CHUNK)
