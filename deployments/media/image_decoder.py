"""Decode untrusted image files in separate processes."""

from __future__ import annotations

from queue import LifoQueue
from typing import TYPE_CHECKING

from deployments.media.decoder_process import DecoderProcess
from deployments.media.image_files import kind_of

if TYPE_CHECKING:
    from PIL.Image import Image

TIMEOUT_S = 20
"""Time limit of one file: 50 megapixels take 3 s on a slow core, but a JPEG may have thousands of nearly empty
scans."""


class ImageDecoder:
    """Thread-safe `image_files.decode`; up to `processes` files at a time. A process starts when all others are
    busy."""

    def __init__(self, max_pixels: int, processes: int = 1) -> None:
        self._processes = [
            DecoderProcess("deployments.media.image_files:decode", max_pixels, TIMEOUT_S) for _ in range(processes)
        ]
        self._idle: LifoQueue[DecoderProcess] = LifoQueue()  # the process used last is used next
        for process in self._processes:
            self._idle.put(process)

    def decode(self, data: bytes, field: str = "image") -> Image:
        """The image, upright and in RGB. Raises `InvalidRequest` about `field`, also for a file that crashes the
        process."""
        from PIL import Image

        kind_of(data, field)
        process = self._idle.get()
        try:
            pixels = process.decode(data, field)
        finally:
            self._idle.put(process)
        return Image.fromarray(pixels)

    @property
    def pids(self) -> list[int]:
        """The ids of the running processes."""
        return [process.pid for process in self._processes if process.pid is not None]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.close()
