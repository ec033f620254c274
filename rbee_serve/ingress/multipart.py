"""Forms (`multipart/form-data`, RFC 7578) as clients write them, from a body that is in memory.

`python-multipart` finds the parts. Its own form parser, and Starlette's, would decide from the file name whether a part
is a file, and accept a form without its end. Here the field decides, so a part is bytes with what its headers declare.
"""

from __future__ import annotations

import base64
import binascii
import logging
import quopri
import re
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from rbee_serve.errors import InvalidRequest
from rbee_serve.validation.field_path import BODY, MAX_NAME_CHARACTERS, shorten

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_PARTS = 1024
"""Parts of one form."""
MAX_HEADERS = 64
"""Headers of one part."""
MAX_HEADER_BYTES = 16 * 1024
"""All headers of one part together."""
MAX_BOUNDARY_BYTES = 256
"""RFC 2046 allows 70."""

_AS_IT_IS = frozenset({b"", b"binary", b"8bit", b"7bit"})

# It would log a warning, with bytes of the form, for each form that it refuses.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class FormPart:
    """One part of a form: its field's `name`, and its decoded `content`."""

    name: str
    content: bytes
    has_file_name: bool = False
    """Whether it has a file name that is not empty. Browsers send an empty one for a field without a file."""
    content_type: str = ""
    """In lower case, without its parameters; empty if the part has none."""
    charset: str = ""
    """Of the content, if that is text; empty if the part declares none."""


def parts_of(content_type: str, body: bytes) -> list[FormPart]:
    """The parts in their order. Lines may end in CRLF, or all in LF; text before and after the form is ignored.

    Raises `InvalidRequest` for a form without its closing boundary, and for parts that have no name or cannot be
    decoded.
    """
    boundary = _boundary(content_type)
    reader = _Reader()
    parser = MultipartParser(
        boundary, reader.callbacks(), max_header_count=MAX_HEADERS, max_header_size=MAX_HEADER_BYTES
    )
    try:
        parser.write(_with_crlf(body, b"--" + boundary))
    except MultipartParseError:
        raise _bad_form("is not a valid form; let the HTTP library write it") from None
    if not reader.is_complete:
        raise _bad_form("is an incomplete form: its closing boundary is missing")
    return reader.parts


class _Reader:
    """Collects the parts of one form."""

    def __init__(self) -> None:
        self.parts: list[FormPart] = []
        self.is_complete = False
        self._begin_part()

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_to_header,
            "on_header_value": self._add_to_value,
            "on_header_end": self._end_header,
            "on_part_data": self._add_to_content,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin_part(self) -> None:
        if len(self.parts) == MAX_PARTS:
            raise _bad_form(f"has more than {MAX_PARTS} parts")
        self._headers: dict[bytes, bytes] = {}
        self._header = self._value = b""
        self._header_bytes = 0
        self._content: list[bytes] = []

    def _add_to_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._header_bytes += len(self._header) + len(self._value)
        if self._header_bytes > MAX_HEADER_BYTES:
            raise _bad_form(f"has a part with more than {MAX_HEADER_BYTES} bytes of headers")
        self._headers[self._header.lower()] = self._value.strip()
        self._header = self._value = b""

    def _add_to_content(self, data: bytes, start: int, end: int) -> None:
        self._content.append(data[start:end])

    def _end_part(self) -> None:
        self.parts.append(_part(self._headers, b"".join(self._content)))

    def _end(self) -> None:
        self.is_complete = True


def _boundary(content_type: str) -> bytes:
    _, parameters = parse_options_header(content_type.encode("latin-1", errors="replace"))
    boundary = parameters.get(b"boundary", b"")
    if not 0 < len(boundary) <= MAX_BOUNDARY_BYTES:
        raise _bad_form("has no boundary in its Content-Type; let the HTTP library set that header")
    return boundary


def _with_crlf(body: bytes, delimiter: bytes) -> bytes:
    """The form from its first boundary on, with CRLF where its own lines end in LF, as in forms that are written by
    hand. Contents stay as they are."""
    start = 0 if body.startswith(delimiter) else body.find(b"\n" + delimiter) + 1
    if start == 0 and not body.startswith(delimiter):
        raise _bad_form("is an incomplete form: its first boundary is missing")
    if not body.startswith(b"\n", start + len(delimiter)):
        return body[start:]
    blocks = re.split(b"\n" + re.escape(delimiter) + rb"(?=[ \t]*\n|--)", body[start:], maxsplit=MAX_PARTS + 1)
    if len(blocks) > MAX_PARTS + 1:
        raise _bad_form(f"has more than {MAX_PARTS} parts")
    for n, block in enumerate(blocks):
        head, end, content = block.partition(b"\n\n")
        blocks[n] = (head + end).replace(b"\n", b"\r\n") + content
    return (b"\r\n" + delimiter).join(blocks)


def _part(headers: dict[bytes, bytes], content: bytes) -> FormPart:
    raw = headers.get(b"content-disposition", b"")
    _, disposition = parse_options_header(raw)
    if b"name" not in disposition:
        raise _bad_form("has a part without a name in its Content-Disposition")
    name = _text(disposition[b"name"])
    content_type, parameters = parse_options_header(headers.get(b"content-type", b""))
    return FormPart(
        name,
        _decoded(name, content, headers.get(b"content-transfer-encoding", b"").lower()),
        has_file_name=bool(disposition.get(b"filename")) or b"filename*=" in raw.lower(),
        content_type=content_type.decode("latin-1"),
        charset=parameters.get(b"charset", b"").decode("latin-1"),
    )


def _decoded(name: str, content: bytes, encoding: bytes) -> bytes:
    if encoding in _AS_IT_IS:
        return content
    if encoding == b"quoted-printable":
        return quopri.decodestring(content)
    try:
        if encoding == b"base64":
            return base64.b64decode(content.translate(None, string.whitespace.encode()), validate=True)
    except (binascii.Error, ValueError):
        pass
    message = "is not what its Content-Transfer-Encoding declares; send it as it is, without that header"
    raise InvalidRequest.of_field(shorten(name, MAX_NAME_CHARACTERS) or BODY, "encoding", message)


def _text(raw: bytes) -> str:
    """A name: browsers write `"` and line ends in it as `%22`, `%0D` and `%0A`, and other bytes as UTF-8."""
    for escape, character in ((b"%22", b'"'), (b"%0D", b"\r"), (b"%0A", b"\n")):
        raw = raw.replace(escape, character)
    return raw.decode("utf-8", errors="replace")


def _bad_form(message: str) -> InvalidRequest:
    return InvalidRequest.of_field(BODY, "form", message)
