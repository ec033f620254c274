"""Previews of an image during denoising (latent2rgb): a linear map from the channels of the latents to red, green and
blue.

That a linear map is enough was found for Stable Diffusion 1.4, whose map is published
(https://discuss.huggingface.co/t/decoding-latents-to-rgb-without-upscaling/23204). Here it is fitted to the model's own
decoder when the model is loaded, so every model has one.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

PATCHES = (1, 2, 4, 8, 16)
"""Sides of the patches that a palette mixes: an image has areas of many sizes."""
SPREAD = 77
"""The standard deviation of a palette's colours, of 255. With 50, previews of photographs were less accurate."""


def palette(side: int, unit: int) -> Any:
    """An image of random colours to fit the map to: patches over patches, the smallest of `unit` pixels."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    mixed = np.zeros((side, side, 3))
    for patch in PATCHES:
        count = -(-side // (patch * unit))
        colors = random.normal(size=(count, count, 3))
        mixed += colors.repeat(patch * unit, 0).repeat(patch * unit, 1)[:side, :side]
    pixels = 128 + SPREAD * mixed / mixed.std()
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


class LatentPreview:
    """The map, as a matrix with a row for each channel and a last one for the offset. `spread` is the standard
    deviation of the latents of a finished image."""

    def __init__(self, matrix: Any, spread: float) -> None:
        self._matrix = matrix
        self._spread = spread

    @classmethod
    def fitted(cls, latents: Any, image: Any) -> LatentPreview:
        """The map whose output for `latents` is nearest to `image`, into which they were decoded (least squares)."""
        import numpy as np
        import torch
        from PIL import Image

        grid = as_grid(latents, image.width / image.height)
        small = np.array(image.resize((grid.shape[2], grid.shape[1]), Image.Resampling.BOX), np.float64)
        colors = torch.from_numpy(small).reshape(-1, 3)
        return cls(torch.linalg.lstsq(_rows(grid), colors).solution, float(grid.std()))

    def image(self, latents: Any, ratio: float) -> Any:
        """An image of one pixel for each latent; `ratio` is that of the final image, width to height."""
        from PIL import Image

        grid = as_grid(latents, ratio)
        # Some samplers begin with noise that is a dozen times stronger than any image.
        colors = _rows(grid / max(1.0, float(grid.std()) / self._spread)) @ self._matrix
        pixels = colors.clamp(0, 255).round().byte().reshape(*grid.shape[1:], 3)
        return Image.fromarray(pixels.numpy())


def is_grid(latents: Any) -> bool:
    """Whether the latents of a square image have one of the two known forms: channels, rows and columns, or a list of
    tokens, row by row."""
    shape: tuple[int, ...] = latents.shape
    return len(shape) == 4 or (len(shape) == 3 and isqrt(shape[1]) ** 2 == shape[1])


def as_grid(latents: Any, ratio: float) -> Any:
    """The latents of one image as channels, rows and columns, in float32 on the CPU."""
    latents = latents[0].float().cpu()
    if latents.ndim == 3:
        return latents
    rows = round((len(latents) / ratio) ** 0.5)
    return latents.T.reshape(latents.shape[1], rows, -1)


def _rows(grid: Any) -> Any:
    """A row of channels for each latent, with a 1 at its end."""
    import torch

    rows = grid.flatten(1).T.double()
    return torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], 1)
