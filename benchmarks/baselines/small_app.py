"""An ASGI application that costs little: what is measured is the server around it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

RESULT = json.dumps({"text": "the quick brown fox jumps over the lazy dog again"}).encode()
EVENT = b'data: {"type":"token","t":"again","i":1}\n\n'
_JSON = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(RESULT))]
_SSE = [(b"content-type", b"text/event-stream")]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """A JSON document, or where `stream` is not false a stream of ten times as many events as `repeat` says."""
    if scope["type"] != "http":
        raise ValueError("HTTP only")
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    request = json.loads(body)
    if not request.get("stream", True):
        await send({"type": "http.response.start", "status": 200, "headers": _JSON})
        await send({"type": "http.response.body", "body": RESULT})
        return
    await send({"type": "http.response.start", "status": 200, "headers": _SSE})
    for _ in range(10 * request.get("repeat", 1)):
        await send({"type": "http.response.body", "body": EVENT, "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b"", "more_body": False})
