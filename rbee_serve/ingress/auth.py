"""Bearer tokens: every route but `/health` needs one, where one is configured."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

logger = logging.getLogger(__name__)

_OPEN_PATH = re.compile(r"/health|/workers/[A-Za-z0-9_-]+/health")


def fingerprint(token: bytes) -> str:
    """For the log: the first 6 hex digits of a token's SHA-256."""
    return hashlib.sha256(token).hexdigest()[:6]


class BearerAuth:
    """ASGI middleware that denies by default. It reads `scope["path"]` only, never a URL made from headers."""

    def __init__(self, app: ASGIApp, token: bytes) -> None:
        self._app = app
        self._digest = hashlib.sha256(token).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or respond with 401."""
        if scope["type"] == "websocket":  # there is no such route, and one would need a token
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http" or (scope["method"] in ("GET", "HEAD") and _OPEN_PATH.fullmatch(scope["path"])):
            await self._app(scope, receive, send)
            return
        credentials = [value for name, value in scope["headers"] if name == b"authorization"]
        if not credentials:
            await _unauthorized("MISSING_API_KEY", "send the header Authorization: Bearer TOKEN")(scope, receive, send)
        elif len(credentials) == 1 and self._is_valid(credentials[0]):
            await self._app(scope, receive, send)
        else:
            # %r keeps control characters of a hostile path out of the log.
            token = fingerprint(_token(credentials[0]))
            logger.warning("refused a request to %r with token %s", scope["path"][:200], token)
            await _unauthorized("INVALID_API_KEY", "the token is not valid here")(scope, receive, send)

    def _is_valid(self, header: bytes) -> bool:
        # Digests have one length, so the time of the comparison does not depend on the token's.
        is_equal = hmac.compare_digest(hashlib.sha256(_token(header)).digest(), self._digest)
        return is_equal and header[:7].lower() == b"bearer "


def _token(header: bytes) -> bytes:
    return header.partition(b" ")[2].strip()


def _unauthorized(code: str, message: str) -> JSONResponse:
    body = {"error": {"code": code, "message": message}}
    return JSONResponse(body, 401, headers={"WWW-Authenticate": "Bearer"})
