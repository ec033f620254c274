"""The image field of requests, and image files for the requests of a `SPEC`."""

from __future__ import annotations

import struct
import zlib
from typing import Annotated

from pydantic import Field

from deployments.request_fields import MAX_FILE_BYTES
from rbee_serve.content import FileField

ImageFile = Annotated[bytes, Field(min_length=1, max_length=MAX_FILE_BYTES, repr=False), FileField("image")]
"""A field of a request: PNG, JPEG or WebP."""


OptionalImageFile = Annotated[
    bytes | None, Field(min_length=1, max_length=MAX_FILE_BYTES, repr=False), FileField("image")
]
"""The same, or nothing."""


def grey_png(width: int, height: int) -> bytes:
    """A grey PNG; 48 megapixels are 140 KB and take a decoder about a second."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    row = b"\0" + b"\x80" * (3 * width)
    compressor = zlib.compressobj(1)
    rows = b"".join([*(compressor.compress(row) for _ in range(height)), compressor.flush()])
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
