"""Small image files of every supported format."""

from __future__ import annotations

from typing import Any

from tests.vision.images import encoded, sample_image

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    "progressive": ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}),
    "webp": ("WEBP", {"quality": 95}),
    "lossless": ("WEBP", {"lossless": True}),
}
"""Pillow's format and options by name."""
SMALL = sample_image()


def encoded_image(name: str) -> bytes:
    """`SMALL` as a file in that format."""
    kind, options = KINDS[name]
    return encoded(SMALL, kind, **options)
