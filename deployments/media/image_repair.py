"""Files with a fault beside the image, which browsers show and Pillow refuses: written again without it.

A stream's WebP keeps a placeholder for its size, a cut-off JPEG lacks the marker of its end though all pixels are
there, and a tool that edits the metadata of a PNG may leave a wrong checksum. Which pixels a file has does not depend
on these.
"""

from __future__ import annotations

import struct
import zlib

_PNG_HEADER = 8
_PNG_KEPT = (b"tRNS", b"eXIf")
"""Chunks of a PNG that are not critical and change what is shown."""

_JPEG_END = b"\xff\xd9"
_FILLERS = (b"", b"\x55" * 1024, b"\xaa" * 1024)


def repaired(data: bytes, kind: str) -> tuple[bytes, ...]:
    """Files to try instead of one that cannot be decoded. It had its whole image only if all of them decode to the same
    pixels; none where there is nothing to repair."""
    if kind == "PNG":
        return (_without_metadata(data),)
    if kind == "JPEG":
        # What follows the last coded pixel changes nothing. Where pixels are missing it is decoded in their place.
        return tuple(data.removesuffix(b"\xff") + filler + _JPEG_END for filler in _FILLERS)
    return (data[:4] + struct.pack("<I", (len(data) - 8) & ~1) + data[8:],)


def _without_metadata(data: bytes) -> bytes:
    """A PNG's critical chunks, and those of `_PNG_KEPT` whose checksum is right."""
    parts, position = [data[:_PNG_HEADER]], _PNG_HEADER
    while position + 12 <= len(data):
        size, name = struct.unpack_from(">I4s", data, position)
        part = data[position : position + 12 + size]
        is_critical = not name[0] & 0x20
        if is_critical or (name in _PNG_KEPT and struct.pack(">I", zlib.crc32(part[4:-4])) == part[-4:]):
            parts.append(part)
        position += 12 + size
    return b"".join([*parts, data[position:]])
