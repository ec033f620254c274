"""Decode untrusted image files in separate processes."""

from __future__ import annotations

from dataclasses import dataclass
from queue import LifoQueue
from typing import TYPE_CHECKING

from deployments.media.decoder_process import DecoderProcess
from deployments.media.image_files import is_animation, kind_of, on_background

if TYPE_CHECKING:
    from PIL.Image import Image

TIMEOUT_S = 20
"""Time limit of one file: 50 megapixels take 3 s on a slow core, but a JPEG may have thousands of nearly empty
scans."""


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """The image of a file in RGB, and what the file had beside it."""

    image: Image
    """Upright and in RGB."""
    alpha: Image | None = None
    """0 where the file is transparent to 255 where it is not, if it is transparent anywhere."""
    background: str | None = None
    """The name of the color that is shown where the file is transparent."""
    is_animation: bool = False
    """Whether the file has more frames."""

    def changes(self, field: str) -> list[str]:
        """A sentence for a narration about each thing that the file has and `image` has not."""
        found = []
        if self.is_animation:
            found.append(f"Of the animation in {field} only the first frame is used")
        if self.background is not None:
            drawing = ", since what can be seen of it is white" if self.background == "black" else ""
            found.append(f"The transparent part of {field} is made {self.background}{drawing}")
        return found


class ImageDecoder:
    """Thread-safe decoding of images; up to `processes` files at a time. A process starts when all others are
    busy."""

    def __init__(self, max_pixels: int, processes: int = 1) -> None:
        self._processes = [
            DecoderProcess("deployments.media.image_files:decode_layers", max_pixels, TIMEOUT_S)
            for _ in range(processes)
        ]
        self._idle: LifoQueue[DecoderProcess] = LifoQueue()  # the process used last is used next
        for process in self._processes:
            self._idle.put(process)

    def decode(self, data: bytes, field: str = "image") -> Image:
        """The image, upright and in RGB. Raises `InvalidRequest` about `field`, also for a file that crashes the
        process."""
        return self.read(data, field).image

    def read(self, data: bytes, field: str = "image") -> DecodedImage:
        """The same, with what was left out of it."""
        from PIL import Image

        kind_of(data, field)
        process = self._idle.get()
        try:
            layers = process.decode(data, field)
        finally:
            self._idle.put(process)
        pixels, background = on_background(layers)
        alpha = None if background is None else Image.fromarray(layers[..., 3])
        return DecodedImage(Image.fromarray(pixels), alpha, background, is_animation(data))

    @property
    def pids(self) -> list[int]:
        """The ids of the running processes."""
        return [process.pid for process in self._processes if process.pid is not None]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.close()
