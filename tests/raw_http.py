"""HTTP as bytes on a socket, for requests that no HTTP client would send."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPResponse

import httpx


@dataclass(frozen=True)
class RawResponse:
    """A response."""

    status: int
    headers: Message
    body: bytes

    @property
    def raw(self) -> bytes:
        """Headers and body together."""
        return self.headers.as_bytes() + self.body


def exchange(url: str, request: bytes | Iterable[bytes], timeout_s: float = 10.0) -> RawResponse:
    """The response to `request`, which is sent piece by piece to the server of `url` until a response arrives."""
    pieces = [request] if isinstance(request, bytes) else request
    with connected(url, timeout_s) as connection:
        method = ""
        with suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                method = method or piece.partition(b" ")[0].decode()
                connection.sendall(piece)
                if select.select([connection], [], [], 0)[0]:
                    break
        with HTTPResponse(connection, method=method) as response:
            response.begin()
            return RawResponse(response.status, response.headers, response.read())


def connected(url: str, timeout_s: float = 10.0) -> socket.socket:
    """A connection to the server of `url`."""
    address = httpx.URL(url)
    return socket.create_connection((address.host, address.port or 80), timeout_s)


def head(target: str | bytes, *headers: bytes, method: bytes = b"POST", host: bytes | None = b"localhost") -> bytes:
    """A request line and headers, unchecked."""
    target = target.encode() if isinstance(target, str) else target
    lines = [method + b" " + target + b" HTTP/1.1", *([] if host is None else [b"Host: " + host]), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def whole(target: str | bytes, body: bytes, *headers: bytes, host: bytes | None = b"localhost") -> bytes:
    """A POST with a body and its length."""
    return head(target, b"Content-Length: %d" % len(body), *headers, host=host) + body


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; the empty one ends it."""
    return b"%x\r\n%b\r\n" % (len(data), data)
