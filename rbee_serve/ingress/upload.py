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

WHOLE = ""
"""The name under which a body that is one file stands until it is known which field it is."""


async def read_upload(request: Request, kind: str, body: bytes) -> dict[str, str | bytes]:
    """The parts by name: files as bytes, other fields as text. Raises `InvalidRequest` for a form that is not whole."""
    if kind == MULTIPART:
        return await asyncio.to_thread(lambda: asyncio.run(_parts(request, body)))
    return {**request.query_params, WHOLE: body}


def typed(upload: Mapping[str, str | bytes], kind: str, request_type: type[InferenceRequest]) -> dict[str, Any]:
    """The fields of a request, as `parse_object` takes them: text becomes what the field is made of, if it can.

    Raises `UnsupportedMediaType` where this worker takes no file of that content type.
    """
    files = content_fields(request_type)
    if not files:
        raise UnsupportedMediaType("send the request as Content-Type: application/json")
    fields = {name: value for name, value in upload.items() if name != WHOLE}
    if WHOLE in upload:
        media = kind.partition("/")[0]
        name = next((name for name, content in files.items() if content.media == media), None)
        if name is None and kind != "application/octet-stream":
            takes = " or ".join(dict.fromkeys(f"{content.media}/*" for content in files.values()))
            raise UnsupportedMediaType(f"send {takes} as it is, or a form ({MULTIPART}), or application/json")
        name = name or next(iter(files))
        fields[name] = upload[WHOLE]
    return {name: _value(value, name, request_type) for name, value in fields.items()}


def _value(value: str | bytes, name: str, request_type: type[InferenceRequest]) -> Any:
    """Text as the number, truth value or list that the field wants; as it is where the field wants text, or where it
    cannot be read: validation then tells what is wrong."""
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
    # The parser takes a form that breaks off as one that is empty.
    if match is None or f"--{match[1] or match[2]}--".encode() not in body[-1024:]:
        raise InvalidRequest.of_field(BODY, "form", "is not a whole form: its closing boundary is missing")

    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        request.headers, once(), max_files=MAX_PARTS, max_fields=MAX_PARTS, max_part_size=MAX_FIELD_BYTES
    )
    try:
        form = await parser.parse()
    except MultiPartException as exc:
        raise InvalidRequest.of_field(BODY, "form", "is not a form that can be read") from exc
    try:
        fields: dict[str, str | bytes] = {}
        for name, value in form.multi_items():
            if name in fields:
                raise InvalidRequest.of_field(name[:64] or BODY, "once", "is in the form more than once")
            fields[name] = await value.read() if isinstance(value, UploadFile) else value
        return fields
    finally:
        await form.close()
