"""Request headers that Ray reads before our application is called, kept from doing harm.

Ray decodes them as UTF-8 and answers 500 where they are not, and with two of them a client can have its stream cut
without an `error` event, or ask not to be watched for leaving. Ray's proxy, and a replica behind HAProxy, call
`middlewares` if the variable RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it.
"""

from __future__ import annotations

import re

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

_NAMED = frozenset([b"x-request-id", b"x-session-id", b"serve-multiplexed-model-id"])
_STEERING = frozenset([b"x-request-timeout-seconds", b"x-request-disconnect-disabled"])
_WELL_FORMED = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class RayHeaders:
    """ASGI middleware: takes out what steers Ray, and ids that are not well-formed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with the headers that are left."""
        if "headers" in scope:
            scope["headers"] = [header for header in scope["headers"] if _is_harmless(*header)]
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Ray is to put around its own handling of a request."""
    return [Middleware(RayHeaders)]


def _is_harmless(name: bytes, value: bytes) -> bool:
    name = name.replace(b"_", b"-")  # as Ray reads it
    return name not in _STEERING and (name not in _NAMED or _WELL_FORMED.fullmatch(value) is not None)
