"""Responses for clients that do not read: a stream without end, and a body that fits into no buffer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rbee_serve.ingress.event_response import EventResponse

LARGE_BYTES = 20 * 1024 * 1024


def with_streams(app: ASGIApp) -> ASGIApp:
    """`app`, and the paths /stream (16 kB fifty times a second), /three (events), /large and /echo."""

    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in ("/stream", "/three"):
            await EventResponse(_endless() if scope["path"] == "/stream" else _three())(scope, receive, send)
        elif scope["path"] == "/large":
            await Response(b"x" * LARGE_BYTES)(scope, receive, send)
        elif scope["path"] == "/echo":
            await Response(await Request(scope, receive).body())(scope, receive, send)
        else:
            await app(scope, receive, send)

    return routed


async def _endless() -> AsyncGenerator[bytes, None]:
    while True:
        yield b"data: " + b"x" * 16384 + b"\n\n"
        await asyncio.sleep(0.02)


async def _three() -> AsyncGenerator[bytes, None]:
    for n in range(3):
        yield b"data: %d\n\n" % n
        await asyncio.sleep(0.01)
