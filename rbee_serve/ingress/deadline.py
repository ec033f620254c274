"""How long a request may take, counted from its arrival."""

from __future__ import annotations

import time

from starlette.requests import Request

from rbee_serve.errors import InferenceTimeout, InvalidRequest

HEADER = "x-request-timeout-ms"
_MAX_MS = 86_400_000


class RequestDeadline:
    """The moment at which a request came in."""

    def __init__(self) -> None:
        self._at = time.monotonic()

    def left_s(self, request: Request, timeout_s: float | None) -> float | None:
        """Seconds that are left of what the header `X-Request-Timeout-Ms` and the field `timeout_s` allow, whichever
        is less; None where neither is given. Raises `InferenceTimeout` if nothing is left."""
        allowed = [seconds for seconds in (timeout_s, _header_s(request)) if seconds is not None]
        if not allowed:
            return None
        left = min(allowed) - (time.monotonic() - self._at)
        if left <= 0:
            raise InferenceTimeout(f"the request took longer to arrive than the {min(allowed):g} s that it allows")
        return left


def _header_s(request: Request) -> float | None:
    value = request.headers.get(HEADER)
    if value is None:
        return None
    if not (value.isascii() and value.isdecimal() and len(value) <= len(str(_MAX_MS)) and int(value) > 0):
        raise InvalidRequest.of_field("X-Request-Timeout-Ms", "type: integer", "must be a whole number of milliseconds")
    return min(int(value), _MAX_MS) / 1000
