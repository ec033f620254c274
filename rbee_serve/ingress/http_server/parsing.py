"""What the parser reports, as errors for the client."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import httptools

from rbee_serve.errors import HttpVersionNotSupported, InvalidRequest, WorkerError

_VERSION = "this server does not speak that version of HTTP; use HTTP/1.1"
_INVALID = "the request is not valid HTTP/1.1; send it with an HTTP library"
_VERSION_FAULTS = ("Invalid HTTP version", "Pause on PRI/Upgrade")


class Refused(Exception):
    """Raised in a callback of the parser, which stops it."""

    def __init__(self, error: WorkerError) -> None:
        super().__init__(error.message)
        self.error = error


def error_of(exc: Exception | None) -> WorkerError:
    """The error for a fault that the parser found; None stands for a version of HTTP that it knows and we do not."""
    if exc is None or str(exc).startswith(_VERSION_FAULTS):
        return HttpVersionNotSupported(_VERSION)
    if isinstance(exc.__context__, Refused):
        return exc.__context__.error
    return InvalidRequest(_INVALID)


def next_parser(protocol: Any) -> httptools.HttpRequestParser:
    """A parser that has seen nothing. One that closes the connection after a response still parses what follows."""
    parser = httptools.HttpRequestParser(protocol)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


def without_upgrade(parser: Any, url: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The head of the request that was parsed, without its `Upgrade`."""
    lines = [b"%b %b HTTP/%b" % (parser.get_method(), url, parser.get_http_version().encode())]
    lines += [b"%b: %b" % header for header in headers if header[0] not in (b"upgrade", b"http2-settings")]
    return b"\r\n".join([*lines, b"", b""])
