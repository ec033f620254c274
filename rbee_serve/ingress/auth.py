"""Bearer tokens: everything but `/health` needs one, where one is configured."""

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
    """What may be logged about a token: the first 6 hex digits of its SHA-256."""
    return hashlib.sha256(token).hexdigest()[:6]


class BearerAuth:
    """ASGI middleware that denies by default. It looks at `scope["path"]` alone, never at a URL made from headers."""

    def __init__(self, app: ASGIApp, token: bytes) -> None:
        self._app = app
        self._digest = hashlib.sha256(token).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] != "http" or (scope["method"] in ("GET", "HEAD") and _OPEN_PATH.fullmatch(scope["path"])):
            await self._app(scope, receive, send)
            return
        credentials = [value for name, value in scope["headers"] if name == b"authorization"]
        if not credentials:
            await _unauthorized("MISSING_API_KEY", "send the header Authorization: Bearer TOKEN")(scope, receive, send)
        elif len(credentials) == 1 and self._is_valid(credentials[0]):
            await self._app(scope, receive, send)
        else:
            logger.warning("refused a request to %s with token %s", scope["path"], fingerprint(credentials[0]))
            await _unauthorized("INVALID_API_KEY", "the token is not valid here")(scope, receive, send)

    def _is_valid(self, header: bytes) -> bool:
        scheme, _, token = header.partition(b" ")
        # Digests have one length, so the comparison tells nothing about the token's.
        return scheme.lower() == b"bearer" and hmac.compare_digest(hashlib.sha256(token.strip()).digest(), self._digest)


def _unauthorized(code: str, message: str) -> JSONResponse:
    body = {"error": {"code": code, "message": message}}
    return JSONResponse(body, 401, headers={"WWW-Authenticate": "Bearer"})
