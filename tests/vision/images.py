"""Small image files of every kind, generated."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 48, 32


def sample_image(width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> Any:
    """Smooth colours, different in each corner: height, width, RGB."""
    corners = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), np.uint8)
    return np.asarray(Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR))


def encoded(image: Any, kind: str, **options: Any) -> bytes:
    """A file of that kind with an image of Pillow's, or with an array."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, rows: bytes, bits: int = 8, colour: int = 2, more: bytes = b"") -> bytes:
    """A PNG with exactly that header, right or wrong. `rows` are its compressed rows, `more` chunks before them."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
