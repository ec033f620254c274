"""A request and its response for a connection that ends with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class Flow(FlowControl):
    """Flow control that can keep a connection from being read, whatever its open request wants."""

    held = False

    def resume_reading(self) -> None:
        """Read again, unless held."""
        if not self.held:
            super().resume_reading()


class ClosingTransport:
    """A transport whose `close` is another one: closing at once would reset a connection with unread input, and the
    client would lose the response."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close


class Http10Exchange(RequestResponseCycle):
    """HTTP/1.0 has no chunks: without a length the end of the connection ends the content. The connection stays open
    only if the client asks for it and the length is known."""

    _until_close = False

    async def send(self, message: ASGISendEvent) -> None:
        """ASGI's `send`."""
        if message["type"] == "http.response.start":
            message = self._framed(message)
        elif self._until_close and message["type"] == "http.response.body":
            self.expected_content_length = len(message.get("body", b""))  # the content is as long as it is
        await super().send(message)

    def _framed(self, start: Any) -> Any:
        headers = list(start.get("headers", ()))
        if not any(name.lower() == b"content-length" for name, _ in headers):
            self._until_close, self.chunked_encoding, self.keep_alive = True, False, False
        elif self.keep_alive:
            headers.append((b"connection", b"keep-alive"))
        return {**start, "headers": headers}
