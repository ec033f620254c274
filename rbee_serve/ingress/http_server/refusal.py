"""A refusal by the server itself, for input that never becomes a request of the application."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from http import HTTPStatus

from rbee_serve import correlation
from rbee_serve.errors import WorkerError

logger = logging.getLogger(__name__)

Headers = Sequence[tuple[bytes, bytes]]


def response(
    error: WorkerError, request_headers: Headers, default_headers: Headers, *more: tuple[bytes, bytes]
) -> bytes:
    """The bytes of a response with the error. It has the correlation id of the request, or a new one."""
    id_header = correlation.HEADER.encode()
    given = next((value for name, value in request_headers if name == id_header), b"")
    body = json.dumps(error.to_json(), separators=(",", ":")).encode()
    headers = [
        *default_headers,
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (id_header, correlation.accept(given.decode("latin-1")).encode()),
        *more,
        (b"connection", b"close"),
    ]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    lines = [b"HTTP/1.1 %d %b" % (error.http_status, HTTPStatus(error.http_status).phrase.encode())]
    return b"\r\n".join([*lines, *(b"%b: %b" % header for header in headers), b"", body])


class RefusalLog:
    """Counts refusals and logs them together, so that a flood of bad requests is no flood in the log."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def count(self, code: str) -> None:
        """One more of them."""
        self._counts[code] += 1

    def flush(self) -> None:
        """Log the refusals since the last call, if there were any."""
        if self._counts:
            logger.warning("refused before a request began: %s", ", ".join(f"{n} {c}" for c, n in self._counts.items()))
            self._counts.clear()
