"""The time limit of a request, counted from its arrival."""

from __future__ import annotations

import time

from starlette.requests import Request

from rbee_serve.errors import InferenceTimeout, InvalidRequest

HEADER = "x-request-timeout-ms"
_MAX_MS = 86_400_000


class RequestDeadline:
    """Counts from the moment at which it is made, when the request arrives."""

    def __init__(self) -> None:
        self._arrived_at = time.monotonic()

    def left_s(self, request: Request, timeout_s: float | None) -> float | None:
        """Seconds left of the header `X-Request-Timeout-Ms` or the field `timeout_s`, whichever is less; None if
        neither is given. Raises `InferenceTimeout` if none are left."""
        limits = [seconds for seconds in (timeout_s, _header_s(request)) if seconds is not None]
        if not limits:
            return None
        left = min(limits) - (time.monotonic() - self._arrived_at)
        if left <= 0:
            raise InferenceTimeout(f"the request took longer to arrive than the {min(limits):g} s that it allows")
        return left


def _header_s(request: Request) -> float | None:
    value = request.headers.get(HEADER)
    if value is None:
        return None
    if not (value.isascii() and value.isdecimal() and len(value) <= len(str(_MAX_MS)) and int(value) > 0):
        raise InvalidRequest.of_field("X-Request-Timeout-Ms", "type: integer", "must be a whole number of milliseconds")
    return min(int(value), _MAX_MS) / 1000
