"""Bearer tokens: every route but `/health` needs one, where a key is configured."""

from __future__ import annotations

import hashlib
import logging
import re

from starlette._utils import get_route_path  # what the routes are compared with
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from rbee_serve.ingress.keys import ApiKey, KeyRing
from rbee_serve.ingress.services import IngressServices

logger = logging.getLogger(__name__)

_OPEN_PATH = re.compile(r"/health|/workers/[A-Za-z0-9_-]+/health")


def fingerprint(token: bytes) -> str:
    """For the log: the first 6 hex digits of a token's SHA-256."""
    return hashlib.sha256(token).hexdigest()[:6]


class BearerAuth:
    """ASGI middleware that denies by default. It reads the path that is routed, never a URL made from headers. The key
    of the request is left in the `state` of its scope, for `key_of`."""

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or respond with 401."""
        if scope["type"] != "http" or (
            scope["method"] in ("GET", "HEAD") and _OPEN_PATH.fullmatch(get_route_path(scope))
        ):
            await self._app(scope, receive, send)
            return
        credentials = [value for name, value in scope["headers"] if name == b"authorization"]
        if not credentials:
            await _unauthorized("MISSING_API_KEY", "send the header Authorization: Bearer TOKEN")(scope, receive, send)
        elif len(credentials) == 1 and (key := self._key(credentials[0])) is not None:
            scope["state"]["key"] = key
            await self._app(scope, receive, send)
        else:
            # %r keeps control characters of a hostile path out of the log.
            token = fingerprint(_token(credentials[0]))
            logger.warning("refused a request to %r with token %s", scope["path"][:200], token)
            await _unauthorized("INVALID_API_KEY", "the token is not valid here")(scope, receive, send)

    def _key(self, header: bytes) -> ApiKey | None:
        return self._keys.find(_token(header)) if header[:7].lower() == b"bearer " else None


def key_of(scope: Scope) -> ApiKey | None:
    """The key with which the request came; None where none is configured, or none is needed."""
    key: ApiKey | None = scope["state"].get("key")
    return key


def visible(scope: Scope, services: IngressServices) -> IngressServices:
    """The services, with the workers that the key of the request may use."""
    key = key_of(scope)
    return services if key is None else services.restricted_to(key.workers)


def _token(header: bytes) -> bytes:
    return header.partition(b" ")[2].strip()


def _unauthorized(code: str, message: str) -> JSONResponse:
    body = {"error": {"code": code, "message": message}}
    return JSONResponse(body, 401, headers={"WWW-Authenticate": "Bearer"})
