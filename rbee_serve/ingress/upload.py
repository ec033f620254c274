"""Requests that are files and not JSON: a form with parts, or the file alone with its fields in the query."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from rbee_serve.content import content_fields
from rbee_serve.errors import InvalidRequest, UnsupportedMediaType
from rbee_serve.request import InferenceRequest
from rbee_serve.validation.field_path import BODY

MULTIPART = "multipart/form-data"
MAX_PARTS = 64
"""Files, and as many other fields, in one form."""
MAX_FIELD_BYTES = 256 * 1024
"""The largest part that is not a file."""

_BOUNDARY = re.compile(r"boundary=(?:\"([^\"]+)\"|([^;\s]+))", re.IGNORECASE)

WHOLE_BODY = ""
"""The name of a body that is one file, until its field is known."""


async def read_upload(request: Request, content_type: str, body: bytes) -> dict[str, str | bytes]:
    """The parts by name: files as bytes, other fields as text. Raises `InvalidRequest` for an incomplete form."""
    if content_type == MULTIPART:
        return await asyncio.to_thread(lambda: asyncio.run(_parts(request, body)))
    return {**request.query_params, WHOLE_BODY: body}


def typed(upload: Mapping[str, str | bytes], content_type: str, request_type: type[InferenceRequest]) -> dict[str, Any]:
    """The fields of a request, as `parse_object` takes them: text becomes the type of its field, if possible.

    Raises `UnsupportedMediaType` if this worker takes no file of that content type.
    """
    files = content_fields(request_type)
    if not files:
        raise UnsupportedMediaType("send the request as Content-Type: application/json")
    fields = {name: value for name, value in upload.items() if name != WHOLE_BODY}
    if WHOLE_BODY in upload:
        media = content_type.partition("/")[0]
        name = next((name for name, content in files.items() if content.media == media), None)
        if name is None and content_type != "application/octet-stream":
            takes = " or ".join(dict.fromkeys(f"{content.media}/*" for content in files.values()))
            raise UnsupportedMediaType(f"send {takes} as the body, or a form ({MULTIPART}), or application/json")
        name = name or next(iter(files))
        fields[name] = upload[WHOLE_BODY]
    return {name: _value(value, name, request_type) for name, value in fields.items()}


def _value(value: str | bytes, name: str, request_type: type[InferenceRequest]) -> Any:
    """Text as the number, boolean or list of its field; unchanged for a text field, and if it cannot be read:
    validation then reports the violation."""
    field = request_type.model_fields.get(name)
    if field is None or field.annotation is None or isinstance(value, bytes):
        return value
    try:
        TypeAdapter(field.annotation).validate_python(value, strict=True)
        return value
    except ValidationError:
        pass
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


async def _parts(request: Request, body: bytes) -> dict[str, str | bytes]:
    match = _BOUNDARY.search(request.headers.get("content-type", ""))
    # The parser treats a truncated form as an empty one.
    if match is None or f"--{match[1] or match[2]}--".encode() not in body[-1024:]:
        raise InvalidRequest.of_field(BODY, "form", "is an incomplete form: its closing boundary is missing")

    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        request.headers, once(), max_files=MAX_PARTS, max_fields=MAX_PARTS, max_part_size=MAX_FIELD_BYTES
    )
    try:
        form = await parser.parse()
    except MultiPartException as exc:
        raise InvalidRequest.of_field(BODY, "form", "is not a valid form") from exc
    try:
        fields: dict[str, str | bytes] = {}
        for name, value in form.multi_items():
            if name in fields:
                raise InvalidRequest.of_field(name[:64] or BODY, "once", "is in the form more than once")
            fields[name] = await value.read() if isinstance(value, UploadFile) else value
        return fields
    finally:
        await form.close()
