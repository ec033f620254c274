"""Reads a request body within limits of size and time."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from rbee_serve.config import LimitsConfig
from rbee_serve.errors import BodyTimeout, InvalidRequest, PayloadTooLarge, UnsupportedMediaType
from rbee_serve.result import JSON

# The types that `curl -d` and clients without a content type send are read as JSON too.
_JSON_TYPES = frozenset({"", JSON, "application/x-www-form-urlencoded", "text/plain"})


def media_type(request: Request) -> str:
    """The content type in lower case without its parameters; `application/json` for every type that is read as JSON.

    Raises `UnsupportedMediaType` for a compressed body.
    """
    if any(encoding.strip().lower() != "identity" for encoding in request.headers.getlist("content-encoding")):
        raise UnsupportedMediaType("send the body without Content-Encoding")
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return JSON if content_type in _JSON_TYPES or content_type.endswith("+json") else content_type


async def read_body(request: Request, limits: LimitsConfig) -> bytes:
    """The body's bytes. Size is counted while reading, so a missing or false `Content-Length` changes nothing.

    Raises `PayloadTooLarge`, `BodyTimeout`, or `InvalidRequest` if the client disconnects.
    """
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or len(declared) > 18 or int(declared) > limits.max_body_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.body_timeout_s) as time_limit:
            return await _read(request, limits, time_limit)
    except TimeoutError:
        raise BodyTimeout(
            f"the body did not arrive in {limits.body_timeout_s:g} s and the time that it takes at "
            f"{limits.min_body_bytes_per_s} bytes/s (limits.body_timeout_s, limits.min_body_bytes_per_s); "
            "send less, or faster"
        ) from None
    except ClientDisconnect:
        raise InvalidRequest("the client disconnected before its body had arrived") from None


async def _read(request: Request, limits: LimitsConfig, time_limit: asyncio.Timeout) -> bytes:
    """The bytes. Each extends the time, so a body ends by its rate, and at the latest by its largest size."""
    chunks: list[bytes] = []
    size = 0
    deadline = time_limit.when()
    async for chunk in request.stream():
        size += len(chunk)
        if size > limits.max_body_bytes:
            raise _too_large(limits)
        chunks.append(chunk)
        if chunk and len(chunks) > 1 and deadline is not None:
            time_limit.reschedule(deadline + size / limits.min_body_bytes_per_s)
    return b"".join(chunks)


def _too_large(limits: LimitsConfig) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is larger than {limits.max_body_bytes} bytes (limits.max_body_bytes); send less")
