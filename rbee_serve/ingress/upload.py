"""Requests that are not JSON: a form, or one file with its fields in the query; and the query of any request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from encodings import normalize_encoding
from encodings.aliases import aliases
from typing import Any
from urllib.parse import unquote_to_bytes

from pydantic.fields import FieldInfo
from pydantic_core import from_json
from starlette.requests import Request

from rbee_serve.content import content_fields, from_data_url
from rbee_serve.errors import InvalidRequest, UnsupportedMediaType
from rbee_serve.ingress.form_values import is_list, item_of, value_of
from rbee_serve.ingress.multipart import MAX_PARTS, FormPart, parts_of
from rbee_serve.request import InferenceRequest
from rbee_serve.result import JSON
from rbee_serve.validation.field_path import BODY, MAX_NAME_CHARACTERS, shorten
from rbee_serve.validation.field_types import fields_of, members_of

MULTIPART = "multipart/form-data"
URL_ENCODED = "application/x-www-form-urlencoded"
MAX_FIELD_BYTES = 256 * 1024
"""The parts together that make up one field which is not a file."""

_CODECS = {each: each for each in ("utf_8", "utf_8_sig", "ascii", "latin_1", "iso8859_15", "cp1252", "utf_16")}
_CHARSETS = {**{name: codec for name, codec in aliases.items() if codec in _CODECS}, **_CODECS}
"""The codecs for a text in a form, by all of Python's names for them. Some of its other codecs are slow or unpack, and
`codecs.lookup` never forgets an unknown name."""
MAX_CHARSET_CHARACTERS = 64
"""Of the name of a charset."""

UNQUOTED_AT_ONCE = 64 * 1024
"""Bytes of a URL-encoded text. Python's own function takes 70 times the size of the text in memory."""

WHOLE_BODY = ""
"""The name of a body that is one file, until its field is known."""

Upload = dict[str, list[FormPart]]
"""The parts of each name, in their order."""


def read_upload(request: Request, content_type: str, body: bytes) -> Upload:
    """The parts of a form, or of a query with the whole body, by name. Raises `InvalidRequest` for an invalid form."""
    if content_type == MULTIPART:
        parts = parts_of(request.headers.get("content-type", ""), body)
    elif content_type == URL_ENCODED:
        parts = _pairs(body)
    else:
        parts = [FormPart(WHOLE_BODY, body, has_file_name=True)]
    return _by_name([*parts, *_pairs(request.scope["query_string"])])


def is_url_encoded_form(request: Request, body: bytes) -> bool:
    """Whether a body that may be JSON is a form such as `prompt=Hi&seed=1`. `curl -d` declares JSON as such a form too,
    so the body decides."""
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return declared == URL_ENCODED and b"=" in body and body.lstrip()[:1] not in (b"{", b"[", b'"', b"\xef")


def query_fields(request: Request) -> Upload:
    """The fields in the query."""
    return _by_name(_pairs(request.scope["query_string"]))


def typed(upload: Upload, content_type: str, request_type: type[InferenceRequest]) -> dict[str, Any]:
    """The fields of a request, as `parse_object` takes them: text becomes the type of its field, if possible, and an
    empty field that may be left out is left out.

    Raises `InvalidRequest` for a field that is given more than once and is no list, and `UnsupportedMediaType` if this
    worker takes no file of that content type.
    """
    files = content_fields(request_type)
    if WHOLE_BODY in upload:
        upload.setdefault(_file_field(content_type, files), []).extend(upload.pop(WHOLE_BODY))
    charset = b"".join(part.content for part in upload.pop("_charset_", ())).decode("latin-1") or "utf-8"
    fields = fields_of(request_type)
    found: dict[str, Any] = {}
    for name, parts in _by_field(upload, fields).items():
        field = fields.get(name)
        if field is None:
            found[name] = None  # validation reports the name
        elif (value := _file(parts) if name in files else _value(parts, field, charset)) is not None:
            found[name] = value
    return found


def text_of(upload: Upload, name: str) -> str | None:
    """The text of a field that names a worker; None if it is not given. Removes it from the upload."""
    parts = upload.pop(name, [])
    _check_size(parts)
    return _text(_only(parts), "utf-8") or None if parts else None


def _file_field(content_type: str, files: Mapping[str, Any]) -> str:
    """The field that a body of this content type is."""
    if not files:
        raise UnsupportedMediaType(f"send the request as Content-Type: {JSON}")
    media = content_type.partition("/")[0]
    name = next((name for name, content in files.items() if content.media == media), None)
    if name is None and content_type != "application/octet-stream":
        takes = " or ".join(dict.fromkeys(f"{content.media}/*" for content in files.values()))
        raise UnsupportedMediaType(f"send {takes} as the body, or a form ({MULTIPART}), or {JSON}")
    return name or next(iter(files))


def _by_field(upload: Upload, fields: Mapping[str, FieldInfo]) -> Upload:
    """The parts by field: `stop[]`, as PHP and axios name each item of a list, is `stop`."""
    found: Upload = {}
    for name, parts in upload.items():
        field = fields.get(name.removesuffix("[]"))
        is_item = name not in fields and field is not None and is_list(field)
        found.setdefault(name.removesuffix("[]") if is_item else name, []).extend(parts)
    return found


def _file(parts: list[FormPart]) -> bytes | None:
    """The bytes of a file, whether or not its part has a file name. A part with neither name nor content is no file."""
    given = [part for part in parts if part.content or part.has_file_name]
    if not given:
        return None
    part = _only(given)
    is_text = not part.has_file_name and part.content_type in ("", "text/plain")
    return from_data_url(part.content) if is_text else part.content


def _value(parts: list[FormPart], field: FieldInfo, charset: str) -> Any:
    """The value of a field that is no file; None if it is not given."""
    _check_size(parts)
    if len(parts) > 1 and is_list(field):
        return [item_of(text, field) for part in parts if (text := _text(part, charset))] or None
    part = _only(parts)
    text = _text(part, charset)
    if part.content_type == JSON:
        with suppress(ValueError):
            return from_json(text)
    is_required_text = field.is_required() and str in members_of(field.annotation)
    return value_of(text, field) if text or is_required_text else None


def _check_size(parts: list[FormPart]) -> None:
    if sum(len(part.content) for part in parts) > MAX_FIELD_BYTES:
        raise _of(parts[0], f"bytes <= {MAX_FIELD_BYTES}", f"must have at most {MAX_FIELD_BYTES} bytes in a form")


def _only(parts: list[FormPart]) -> FormPart:
    if len(parts) > 1:
        raise _of(parts[0], "once", "is given more than once")
    return parts[0]


def _text(part: FormPart, charset: str) -> str:
    name = part.charset or charset
    if len(name) <= MAX_CHARSET_CHARACTERS and (codec := _CHARSETS.get(normalize_encoding(name).lower())):
        with suppress(UnicodeError):
            return part.content.decode(codec)
    raise _of(part, "charset", "is not text in the declared charset; send it as UTF-8")


def _pairs(encoded: bytes) -> list[FormPart]:
    """The fields of a query, or of a form that is written like one."""
    if encoded.count(b"&") >= MAX_PARTS:
        raise InvalidRequest.of_field(BODY, "form", f"has more than {MAX_PARTS} fields")
    pairs = (pair.partition(b"=") for pair in encoded.replace(b"+", b" ").split(b"&") if pair)
    return [
        FormPart(_unquoted(name).decode("utf-8", errors="replace"), _unquoted(content)) for name, _, content in pairs
    ]


def _unquoted(encoded: bytes) -> bytes:
    """The bytes with those that are written as `%41`."""
    return b"".join(map(unquote_to_bytes, _slices(encoded))) if b"%" in encoded else encoded


def _slices(encoded: bytes) -> Iterator[bytes]:
    """Slices of at most `UNQUOTED_AT_ONCE` bytes, none of which ends within an escape."""
    start = 0
    while start < len(encoded):
        end = start + UNQUOTED_AT_ONCE
        escape = encoded.rfind(b"%", end - 2, end) if end < len(encoded) else -1
        yield encoded[start : (end := end if escape < 0 else escape)]
        start = end


def _by_name(parts: Iterable[FormPart]) -> Upload:
    upload: Upload = {}
    for part in parts:
        upload.setdefault(part.name, []).append(part)
    return upload


def _of(part: FormPart, constraint: str, message: str) -> InvalidRequest:
    return InvalidRequest.of_field(shorten(part.name, MAX_NAME_CHARACTERS) or BODY, constraint, message)
