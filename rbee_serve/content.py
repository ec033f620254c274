"""Fields that hold a file: an image or a recording, as base64 in JSON, or unencoded in an upload.

In the request such a field is `bytes`, also between processes; base64 is used at the HTTP boundary only.
"""

from __future__ import annotations

import base64
import binascii
import string
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

_MAX_DATA_URL_PREFIX = 256
"""Characters of the longest accepted prefix such as `data:image/png;base64,`."""

_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_ESCAPES = {"%2B": "+", "%2F": "/", "%3D": "=", "%0D": "", "%0A": "", "%20": ""}
"""What stands in a URL for characters of base64 and line breaks. To decode any escape takes 70 times the memory."""


@dataclass(frozen=True, slots=True)
class FileField:
    """Marks a field of `bytes` as a file: `Annotated[bytes, Field(max_length=…, repr=False), FileField("audio")]`.

    `media` is the type of the content types that it may be uploaded with (`audio/*`, `image/*`).
    """

    media: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Base64, or a data URL of it, in JSON and in the JSON of a form's field; bytes in Python."""
        return core_schema.no_info_before_validator_function(
            _decoded,
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(_encoded, when_used="json-unless-none"),
        )


def _decoded(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or len(head) > _MAX_DATA_URL_PREFIX or not head.lower().endswith(";base64"):
            raise _base64_error()
        for escape, character in _ESCAPES.items():
            text = text.replace(escape, character).replace(escape.lower(), character)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return _decoded_leniently(text)


def _decoded_leniently(text: str) -> bytes:
    """Base64 in the other forms that encoders write: with line breaks, in the URL-safe alphabet, without padding."""
    try:
        standard = text.encode("ascii").translate(_URL_SAFE, string.whitespace.encode()).rstrip(b"=")
        return base64.b64decode(standard + b"=" * (-len(standard) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _base64_error() from None


def from_data_url(content: bytes) -> bytes:
    """The file in a data URL, as pages put it into a form in place of a file; `content` itself if it is none."""
    if content[:5].lower() != b"data:":
        return content
    try:
        decoded: bytes = _decoded(content.decode("ascii"))
    except (PydanticCustomError, UnicodeDecodeError):
        return content
    return decoded


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _base64_error() -> PydanticCustomError:
    return PydanticCustomError("base64", "not base64")


def content_fields(request_type: type[BaseModel]) -> dict[str, FileField]:
    """The fields of a request that hold a file, in order."""
    found = {name: _marker(field) for name, field in request_type.model_fields.items()}
    return {name: marker for name, marker in found.items() if marker is not None}


def _marker(field: FieldInfo) -> FileField | None:
    return next((item for item in field.metadata if isinstance(item, FileField)), None)
