"""Removes harmful request headers that Ray reads before our application is called.

Ray decodes them as UTF-8 and responds with 500 if that fails. With two of them a client can have Ray truncate its
stream without an `error` event, or turn off the detection of its disconnect. Ray's proxy, and a replica behind HAProxy,
call `middlewares` if the variable RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it.
"""

from __future__ import annotations

import re

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

_IDS = frozenset([b"x-request-id", b"x-session-id", b"serve-multiplexed-model-id"])
_CONTROL = frozenset([b"x-request-timeout-seconds", b"x-request-disconnect-disabled"])
_WELL_FORMED = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class RayHeaders:
    """ASGI middleware: removes headers that control Ray, and ids that are not well-formed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with the remaining headers."""
        if "headers" in scope:
            scope["headers"] = [header for header in scope["headers"] if _is_harmless(*header)]
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """The middlewares that Ray puts around its own handling of a request."""
    return [Middleware(RayHeaders)]


def _is_harmless(name: bytes, value: bytes) -> bool:
    name = name.replace(b"_", b"-")  # as Ray reads it
    return name not in _CONTROL and (name not in _IDS or _WELL_FORMED.fullmatch(value) is not None)
