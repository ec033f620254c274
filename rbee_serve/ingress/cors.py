"""The headers by which a browser lets a web page of another origin use the server."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from rbee_serve.config.cors import ANY_ORIGIN, normal_origin

ALLOWED_METHODS = b"GET, HEAD, POST"
ALLOWED_HEADERS = (
    "authorization", "content-type", "idempotency-key", "last-event-id", "x-correlation-id", "x-request-timeout-ms",
)  # fmt: skip
"""Request headers that a page may set in any case. Others are allowed as it requests them: SDKs add their own."""
EXPOSED_HEADERS = b"X-Correlation-ID, Retry-After, Allow, WWW-Authenticate"
PREFLIGHT_MAX_AGE_S = 600
"""How long a browser may reuse the response to a preflight."""

_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~ ,-]{0,2048}")
_VARY = (b"vary", b"Origin")

RawHeaders = list[tuple[bytes, bytes]]


class Cors:
    """The origins of `cors.allow_origins`."""

    def __init__(self, allow_origins: Iterable[str] = ()) -> None:
        self._origins = frozenset(allow_origins)
        self.allows_any = ANY_ORIGIN in self._origins

    def allows(self, origin: str) -> bool:
        """Whether pages of that origin, as the header has it, may use the server."""
        return self.allows_any or origin in self._origins or normal_origin(origin) in self._origins

    def response_headers(self, origin: bytes | None) -> RawHeaders:
        """Of every response: `origin` is the allowed origin of the request, None if it has none."""
        if not self._origins:
            return []
        if origin is None:
            return [_VARY]
        allowed = b"*" if self.allows_any else origin
        return [
            (b"access-control-allow-origin", allowed),
            (b"access-control-expose-headers", EXPOSED_HEADERS),
            _VARY,
        ]

    def refusal_headers(self, request_headers: RawHeaders) -> RawHeaders:
        """Of a response to a request that may be incomplete, from the headers that have arrived."""
        origins = [value for name, value in request_headers if name == b"origin"]
        allowed = len(origins) == 1 and self.allows(origins[0].decode("latin-1"))
        return self.response_headers(origins[0] if allowed else None)

    def preflight_headers(self, request_headers: Mapping[bytes, bytes]) -> RawHeaders:
        """Of the response to a preflight of an allowed origin, beside `response_headers`."""
        requested = request_headers.get(b"access-control-request-headers", b"").decode("latin-1")
        names = {name.strip().lower() for name in requested.split(",")} if _NAMES.fullmatch(requested) else set()
        headers = [
            (b"access-control-allow-methods", ALLOWED_METHODS),
            (b"access-control-allow-headers", ", ".join(sorted({*ALLOWED_HEADERS, *names} - {""})).encode()),
            (b"access-control-max-age", b"%d" % PREFLIGHT_MAX_AGE_S),
        ]
        if request_headers.get(b"access-control-request-private-network") == b"true":
            headers.append((b"access-control-allow-private-network", b"true"))
        return headers
