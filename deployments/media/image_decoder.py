"""Decodes the image files of strangers, in processes of their own."""

from __future__ import annotations

import importlib
from queue import LifoQueue
from typing import TYPE_CHECKING

from deployments.media.decoder_process import DecoderProcess
from deployments.media.image_files import kind_of

if TYPE_CHECKING:
    from PIL.Image import Image

LIMIT_S = 20
"""Seconds that one file may keep a decoder busy: 50 megapixels take 3 on a slow core, and a JPEG may hold
thousands of layers of next to nothing."""


class ImageDecoder:
    """`image_files.decode` for use from any thread: as many files at a time as it may have `processes`, of which each
    is started when all others are busy."""

    def __init__(self, max_pixels: int, processes: int = 1) -> None:
        self._processes = [
            DecoderProcess("deployments.media.image_files:decode", max_pixels, LIMIT_S) for _ in range(processes)
        ]
        self._idle: LifoQueue[DecoderProcess] = LifoQueue()  # so that the one that has just worked works next
        for process in self._processes:
            self._idle.put(process)

    def decode(self, data: bytes, field: str = "image") -> Image:
        """The picture, upright and in RGB. Raises `InvalidRequest` about `field`; also on a file that ends the
        process."""
        kind_of(data, field)
        process = self._idle.get()
        try:
            pixels = process.decode(data, field)
        finally:
            self._idle.put(process)
        return importlib.import_module("PIL.Image").fromarray(pixels)  # type: ignore[no-any-return]

    @property
    def pids(self) -> list[int]:
        """The processes that have been started."""
        return [process.pid for process in self._processes if process.pid is not None]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.close()
