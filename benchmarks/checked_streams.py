"""Streams of the echo worker, checked after reading: each word comes once and in order."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.load import LoadError, StreamLoad, Streams, Target, read_streams

TICKS_PER_S = 10
"""Reads per second of a slow reader."""
RECEIVE_BUFFER = 16 * 1024
"""Bytes of the kernel's receive buffer of a slow reader; small, so that backpressure reaches the server soon."""

# The servers send whole events, so none spans two HTTP chunks.
_INDEX = re.compile(rb'data: \{"type":"token","t":"[^"]*","i":(\d+)\}\n\n')
_LAST = b"data: [DONE]\n\n"


def check(answer: bytes, words: int) -> None:
    """Raise `LoadError` unless a stream has exactly `words` words in order, then its end and the marker."""
    found = check_begun(answer)
    if found != words:
        raise LoadError(f"a stream of {words} words had {found}")
    if answer.count(b'"type":"end"') != 1 or answer.count(_LAST) != 1 or b"data: " in answer.partition(_LAST)[2]:
        raise LoadError(f"a stream has no proper end: {answer[-300:]!r}")


def check_begun(answer: bytes) -> int:
    """The number of words received so far. Raises `LoadError` unless they are in order."""
    indices = [int(index) for index in _INDEX.findall(answer)]
    for place, index in enumerate(indices):
        if place != index:
            raise LoadError(f"word {index} of a stream came instead of word {place}")
    return len(indices)


def read_checked(load: StreamLoad, words: int) -> Streams:
    """Read streams of `words` words each, and check the complete ones. Raises `LoadError`."""
    seen = read_streams(load)
    for answer in seen.answers:
        check(answer, words)
    seen.answers.clear()
    return seen


@dataclass(frozen=True, slots=True)
class SlowLoad:
    """Streams that are opened together, read at `bytes_per_s` each for `seconds`, then closed."""

    target: Target
    body: bytes
    clients: int
    bytes_per_s: int
    seconds: float


def read_slowly(load: SlowLoad) -> int:
    """The bytes received in all. Raises `LoadError` if a stream ended or its words were out of order."""
    with ExitStack() as stack:
        connections = [stack.enter_context(_connected(load.target)) for _ in range(load.clients)]
        for connection in connections:
            connection.sendall(load.target.request(load.body))
        answers = _sipped(load, connections)
    for answer in answers:
        if check_begun(bytes(answer)) == 0:
            raise LoadError(f"a slow reader got no words: {bytes(answer[:300])!r}")
    return sum(map(len, answers))


def _connected(target: Target) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    connection.connect(("127.0.0.1", target.port))
    connection.settimeout(10)
    return connection


def _sipped(load: SlowLoad, connections: Sequence[socket.socket]) -> list[bytearray]:
    answers = [bytearray() for _ in connections]
    began = time.monotonic()
    for tick in range(round(load.seconds * TICKS_PER_S)):
        time.sleep(max(0.0, began + tick / TICKS_PER_S - time.monotonic()))
        for answer, connection in zip(answers, connections, strict=True):
            data = connection.recv(load.bytes_per_s // TICKS_PER_S)
            if not data:
                raise LoadError("a slow reader's stream broke off")
            answer += data
    return answers
