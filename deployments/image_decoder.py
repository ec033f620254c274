"""Decodes the image files of strangers, in a process of its own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from deployments.decoding_process import DecodingProcess
from deployments.image_files import kind_of

if TYPE_CHECKING:
    from PIL.Image import Image

LIMIT_S = 20
"""Seconds that one file may keep the decoder busy: a PNG of 50 megapixels takes 2 on a slow core, and a JPEG may hold
thousands of layers of next to nothing."""


class ImageDecoder:
    """`image_files.decode` for use from any thread; one file is decoded at a time."""

    def __init__(self, max_pixels: int) -> None:
        self._process = DecodingProcess("deployments.image_files:decode", max_pixels, LIMIT_S)

    def decode(self, data: bytes, field: str = "image") -> Image:
        """The picture, upright and in RGB. Raises `InvalidRequest` about `field`; also on a file that ends the
        process."""
        kind_of(data, field)
        return importlib.import_module("PIL.Image").fromarray(self._process.decode(data, field))  # type: ignore[no-any-return]

    @property
    def pid(self) -> int | None:
        """The process that decodes, where there is one."""
        return self._process.pid

    def close(self) -> None:
        """End the process."""
        self._process.close()
