"""Reading a request body within bounds of size and time."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from rbee_serve.config import LimitsConfig
from rbee_serve.errors import BodyTimeout, InvalidRequest, PayloadTooLarge, UnsupportedMediaType
from rbee_serve.result import JSON

# What curl sends with -d, and what a client sends that names no type at all, is read as JSON too.
_JSON_TYPES = frozenset({"", JSON, "application/x-www-form-urlencoded", "text/plain"})


def media_type(request: Request) -> str:
    """The content type in lower case without its parameters; `application/json` for all that is read as JSON.

    Raises `UnsupportedMediaType` where the body is packed.
    """
    if any(encoding.strip().lower() != "identity" for encoding in request.headers.getlist("content-encoding")):
        raise UnsupportedMediaType("send the body without Content-Encoding")
    named = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return JSON if named in _JSON_TYPES or named.endswith("+json") else named


async def read_body(request: Request, limits: LimitsConfig) -> bytes:
    """The body's bytes. Size is counted while reading, so a missing or false `FileField-Length` changes nothing.

    Raises `PayloadTooLarge`, `BodyTimeout`, or `InvalidRequest` if the client left meanwhile.
    """
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or len(declared) > 18 or int(declared) > limits.max_body_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            return await _read(request, limits)
    except TimeoutError:
        raise BodyTimeout(f"the body did not arrive in {limits.body_timeout_s:g} s") from None
    except ClientDisconnect:
        raise InvalidRequest("the client left before its body had arrived") from None


async def _read(request: Request, limits: LimitsConfig) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limits.max_body_bytes:
            raise _too_large(limits)
        parts.append(part)
    return b"".join(parts)


def _too_large(limits: LimitsConfig) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is larger than {limits.max_body_bytes} bytes, which is the most that is taken")
