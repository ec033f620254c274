"""Forms (`multipart/form-data`, RFC 7578) as clients write them, from a body that is in memory.

A library's parser would decide from the file name whether a part is a file, and turn the others into text. Here that
is known from the field, so a part is bytes with its headers.
"""

from __future__ import annotations

import base64
import binascii
import quopri
import re
from collections.abc import Iterator
from dataclasses import dataclass

from rbee_serve.errors import InvalidRequest
from rbee_serve.validation.field_path import BODY, MAX_NAME_CHARACTERS, shorten

MAX_PARTS = 1024
"""Parts of one form."""
MAX_HEADER_BYTES = 16 * 1024
"""Headers of one part."""
MAX_BOUNDARY_BYTES = 256
"""RFC 2046 allows 70."""

_PARAMETER = re.compile(rb';\s*([^\s=;]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;\s]*))')
_FOLDED = re.compile(rb"\r?\n[ \t]+")
_PADDING = re.compile(rb"[ \t]*(\r?\n|$)")
_AS_IT_IS = frozenset({b"", b"binary", b"8bit", b"7bit"})


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
    parts: list[FormPart] = []
    for start, end in _blocks(_boundary(content_type), body):
        if len(parts) == MAX_PARTS:
            raise _bad_form(f"has more than {MAX_PARTS} parts")
        parts.append(_part(body, start, end))
    return parts


def _boundary(content_type: str) -> bytes:
    parameters = _parameters(content_type.encode("latin-1", errors="replace"))
    boundary = parameters.get(b"boundary", b"")
    if not 0 < len(boundary) <= MAX_BOUNDARY_BYTES:
        raise _bad_form("has no boundary in its Content-Type; let the HTTP library set that header")
    return boundary


def _blocks(boundary: bytes, body: bytes) -> Iterator[tuple[int, int]]:
    """The positions of each part's headers and content. Nothing is copied."""
    delimiter = b"--" + boundary
    start = 0 if body.startswith(delimiter) else body.find(b"\n" + delimiter) + 1
    if start == 0 and not body.startswith(delimiter):
        raise _bad_form("is an incomplete form: its first boundary is missing")
    after = start + len(delimiter)
    line = _PADDING.match(body, after)
    separator = (b"\n" if line is not None and line[1] == b"\n" else b"\r\n") + delimiter
    while not body.startswith(b"--", after):
        line = _PADDING.match(body, after)
        if line is None:
            raise _bad_form("has text behind a boundary, on its line")
        # The line end before the first boundary of a part without content is that of the boundary's own line.
        begin = line.end() - len(line[1])
        end = _next(body, separator, begin)
        yield line.end(), max(end, line.end())
        after = end + len(separator)


def _next(body: bytes, separator: bytes, begin: int) -> int:
    """The position of the next line that is the boundary, and not only begins with it."""
    while (end := body.find(separator, begin)) >= 0:
        after = end + len(separator)
        if body.startswith(b"--", after) or _PADDING.match(body, after):
            return end
        begin = end + 1
    raise _bad_form("is an incomplete form: its closing boundary is missing")


def _part(body: bytes, start: int, end: int) -> FormPart:
    head, content = _split(body, start, end)
    headers = {}
    for line in _FOLDED.sub(b" ", head).splitlines():
        header, _, value = line.partition(b":")
        headers[header.strip().lower()] = value.strip()
    disposition = _parameters(headers.get(b"content-disposition", b""))
    if b"name" not in disposition:
        raise _bad_form("has a part without a name in its Content-Disposition")
    name = _text(disposition[b"name"])
    content_type = headers.get(b"content-type", b"")
    return FormPart(
        name,
        _decoded(name, content, headers.get(b"content-transfer-encoding", b"").lower()),
        has_file_name=bool(disposition.get(b"filename") or disposition.get(b"filename*")),
        content_type=content_type.partition(b";")[0].strip().lower().decode("latin-1"),
        charset=_parameters(content_type).get(b"charset", b"").decode("latin-1"),
    )


def _split(body: bytes, start: int, end: int) -> tuple[bytes, bytes]:
    """The headers and the content of a part, which an empty line separates."""
    last = min(end, start + MAX_HEADER_BYTES)
    if body.startswith((b"\r\n", b"\n"), start, last):  # no header at all
        return b"", b""
    ends = [(at, len(mark)) for mark in (b"\r\n\r\n", b"\n\n") if (at := body.find(mark, start, last)) >= 0]
    if not ends:
        raise _bad_form("has a part whose headers do not end")
    at, length = min(ends)
    return body[start:at], body[at + length : end]


def _parameters(header: bytes) -> dict[bytes, bytes]:
    """The parameters of a header by their names in lower case. Of equal names the first one counts."""
    found: dict[bytes, bytes] = {}
    for name, quoted, token in _PARAMETER.findall(header):
        found.setdefault(name.lower(), re.sub(rb"\\([\\\"])", rb"\1", quoted) if quoted else token)
    return found


def _decoded(name: str, content: bytes, encoding: bytes) -> bytes:
    if encoding in _AS_IT_IS:
        return content
    if encoding == b"quoted-printable":
        return quopri.decodestring(content)
    try:
        if encoding == b"base64":
            return base64.b64decode(re.sub(rb"\s+", b"", content), validate=True)
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
