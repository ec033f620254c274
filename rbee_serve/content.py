"""Fields that hold a file: an image or a recording, as base64 in JSON, or as it is in an upload.

In the request such a field is `bytes`. It crosses the process border as bytes; base64 is at the HTTP edge only.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

_DATA_URL_HEAD = 256
"""`data:image/png;base64,` and its like are no longer than this."""


@dataclass(frozen=True, slots=True)
class FileField:
    """Marks a field of `bytes` as a file: `Annotated[bytes, Field(max_length=…, repr=False), Content("audio")]`.

    `media` is the first part of the content types that a client may upload it with (`audio/*`, `image/*`).
    """

    media: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Base64, or a data URL of it, in JSON; bytes in Python."""
        decoded = handler(source)
        return core_schema.json_or_python_schema(
            json_schema=core_schema.no_info_before_validator_function(_decoded, decoded),
            python_schema=decoded,
            serialization=core_schema.plain_serializer_function_ser_schema(_encoded, when_used="json-unless-none"),
        )


def _decoded(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or len(head) > _DATA_URL_HEAD or not head.endswith(";base64"):
            raise _not_base64()
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _not_base64() from None


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _not_base64() -> PydanticCustomError:
    return PydanticCustomError("base64", "not base64")


def content_fields(request_type: type[BaseModel]) -> dict[str, FileField]:
    """The fields of a request that hold a file, in their order."""
    found = {name: _marker(field) for name, field in request_type.model_fields.items()}
    return {name: marker for name, marker in found.items() if marker is not None}


def _marker(field: FieldInfo) -> FileField | None:
    return next((part for part in field.metadata if isinstance(part, FileField)), None)
