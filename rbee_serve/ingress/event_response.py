"""A streaming response that is cancelled within milliseconds when its client disconnects."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress

from starlette.types import Receive, Scope, Send

from rbee_serve.ingress.disconnect import ClientDisconnected, cancel_on_disconnect
from rbee_serve.sse import MEDIA_TYPE

_HEADERS = [
    (b"content-type", f"{MEDIA_TYPE}; charset=utf-8".encode()),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class EventResponse:
    """Sends chunks of SSE frames as they arrive. `close` is called at the end in any case: a generator that was never
    started does not run its `finally`."""

    def __init__(self, chunks: AsyncGenerator[bytes, None], close: Callable[[], object] = lambda: None) -> None:
        self._chunks = chunks
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or stop at a disconnect; the generator is closed either way."""
        try:
            with suppress(ClientDisconnected):
                await cancel_on_disconnect(receive, self._send(send))
        finally:
            self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
        async with aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
