"""Requests and responses of a given size over one connection, one after another."""

from __future__ import annotations

import json
import re
import secrets
import socket
import time
from dataclasses import dataclass, field

from benchmarks.load import LoadError, Target

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_BUFFER = 256 * 1024


@dataclass(frozen=True, slots=True)
class Payload:
    """`size` bytes of random text, sent for `seconds`; with `back` the response is the whole echo, else its
    first word."""

    target: Target
    size: int
    back: bool
    seconds: float


@dataclass(slots=True)
class Exchanged:
    """Seconds from the first byte of each request to the last of its response, sorted; seconds in all."""

    times_s: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def per_s(self) -> float:
        """The rate."""
        return len(self.times_s) / self.seconds


def exchange(payload: Payload) -> Exchanged:
    """Send the payload until the time is over, at least twice. Raises `LoadError` for an incomplete response."""
    text = f"ok {secrets.token_hex((payload.size - 2) // 2)}"[: payload.size]
    fields = {"prompt": text, "stream": False} | ({} if payload.back else {"max_tokens": 1})
    request = payload.target.request(json.dumps(fields).encode())
    expected = b'"text":"' + (text if payload.back else "ok").encode() + b'"'
    exchanged = Exchanged()
    with socket.create_connection(("127.0.0.1", payload.target.port), timeout=60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.perf_counter()
        while (exchanged.seconds < payload.seconds) or len(exchanged.times_s) < 2:
            sent_at = time.perf_counter()
            connection.sendall(request)
            answer = _answer(connection)
            exchanged.times_s.append(time.perf_counter() - sent_at)
            if expected not in answer:
                raise LoadError(f"an answer to {payload.size} bytes is incomplete: {bytes(answer[:300])!r}")
            exchanged.seconds = time.perf_counter() - began
    exchanged.times_s.sort()
    return exchanged


def _answer(connection: socket.socket) -> bytearray:
    """One response with its head."""
    answer = bytearray()
    whole = None
    while whole is None or len(answer) < whole:
        data = connection.recv(_BUFFER)
        if not data:
            raise LoadError(f"a response ended early: {bytes(answer[:300])!r}")
        answer += data
        if whole is None and (end := answer.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(answer, 0, end)
            if not answer.startswith(b"HTTP/1.1 200") or length is None:
                raise LoadError(f"a request was refused: {bytes(answer[:300])!r}")
            whole = end + 4 + int(length[1])
    return answer
