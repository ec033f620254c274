"""Whether a file has the pixels that its header declares. Pillow decodes a PNG or JPEG that ends early as if it were
whole where the marker of its end is there: the missing rows are zero, or grey.

Only an image that ends in such a row is read a second time, so nearly all cost nothing.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

GREY = 128
"""Every channel of a pixel of a JPEG without data."""
_BLOCK = 8
_BUFFER = 2**20

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Of a PNG, by its color type."""
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Column, row, and the steps of both, of each pass of an interlaced PNG."""

_JPEG_END = b"\xff\xd9"


def has_all_pixels(image: Any, data: bytes, kind: str) -> bool:
    """Whether none of the pixels of `image`, which Pillow has decoded from `data`, was missing."""
    if kind == "PNG":
        return _ends_in_pixels(image) or _inflates_to_all_rows(data)
    if kind == "JPEG" and _ends_in_grey(image):
        # What follows the last coded pixel changes nothing. Where pixels are missing it is decoded in their place.
        end = data.rfind(_JPEG_END)
        return bool(image.tobytes() == _jpeg_pixels(data[:end] + b"\x55" * 1024 + data[end:]))
    return True


def _ends_in_pixels(image: Any) -> bool:
    if image.info.get("interlace"):  # the last row is not the last one in the file
        return False
    return any(image.crop((0, image.height - 1, image.width, image.height)).tobytes())


def _ends_in_grey(image: Any) -> bool:
    width, height = image.size
    block = image.crop((max(0, width - _BLOCK), max(0, height - _BLOCK), width, height))
    return set(block.tobytes()) == {GREY}


def _jpeg_pixels(data: bytes) -> bytes:
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        image.load()
        return bytes(image.tobytes())


def _inflates_to_all_rows(data: bytes) -> bool:
    width, height, bits, color, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    bits_per_pixel = bits * _CHANNELS[color]
    expected = 0
    for column, row, columns, rows in _PASSES if interlaced else ((0, 0, 1, 1),):
        across, down = max(0, -(-(width - column) // columns)), max(0, -(-(height - row) // rows))
        expected += down * (1 + -(-across * bits_per_pixel // 8)) if across else 0
    inflater, size = zlib.decompressobj(), 0
    for part in _idat(data):
        while part and size < expected:
            size += len(inflater.decompress(part, _BUFFER))
            part = inflater.unconsumed_tail
    return size >= expected


def _idat(data: bytes) -> Iterator[bytes]:
    position = 8
    while position + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, position)
        if name == b"IDAT":
            yield data[position + 8 : position + 8 + size]
        position += 12 + size
