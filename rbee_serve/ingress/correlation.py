"""A correlation id, headers of every response, and one line in the log for every request."""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rbee_serve import correlation

logger = logging.getLogger("rbee_serve.access")

_HEADER = correlation.HEADER.encode()
# Several probes a second would hide all other lines.
_QUIET_SUFFIXES = ("/health", "/v1/ready")


class Correlation:
    """ASGI middleware: the id from the request if it is well-formed, else a new one. The response has it too.

    The `state` in the scope is the request's own from here on. Its `response_headers`, a list to which the other
    middleware may add, are sent with every response; its `key`, if there is one, is named in the log.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on in the context of its id."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received = next((value for name, value in scope["headers"] if name == _HEADER), b"")
        correlation_id = correlation.accept(received.decode("latin-1"))
        correlation.enter(correlation_id)
        response_headers = [(_HEADER, correlation_id.encode())]
        state = scope["state"] = {**scope.get("state", {}), "response_headers": response_headers}
        began = time.monotonic()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *response_headers]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if status != 200 or not scope["path"].endswith(_QUIET_SUFFIXES):
                seconds = time.monotonic() - began
                key = f" key={state['key'].name}" if "key" in state else ""
                # %r keeps control characters of a hostile path out of the log.
                logger.info("%s %r %s %.3fs%s", scope["method"], scope["path"][:200], status or "gone", seconds, key)
