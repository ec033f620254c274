"""What a picture will look like, told from the latents that it is made of: by a linear map from their channels to red,
green and blue.

That such a map is enough was found for Stable Diffusion 1.4, whose map is published
(https://discuss.huggingface.co/t/decoding-latents-to-rgb-without-upscaling/23204). Here it is fitted to the model's own
decoder when the model is loaded, so there is one for every model.
"""

from __future__ import annotations

import importlib
from math import isqrt
from typing import Any

PATCHES = (1, 2, 4, 8, 16)
"""Sides of the patches that a palette is a mixture of: a picture has areas of many sizes."""
SPREAD = 77
"""The standard deviation of its colours, of 255. With 50, photographs were met less well."""


def palette(side: int, unit: int) -> Any:
    """A picture of random colours to learn from: patches over patches, the smallest of `unit` pixels."""
    numpy: Any = importlib.import_module("numpy")
    random = numpy.random.default_rng(0)
    mixed = numpy.zeros((side, side, 3))
    for patch in PATCHES:
        count = -(-side // (patch * unit))
        colors = random.normal(size=(count, count, 3))
        mixed += colors.repeat(patch * unit, 0).repeat(patch * unit, 1)[:side, :side]
    pixels = 128 + SPREAD * mixed / mixed.std()
    return importlib.import_module("PIL.Image").fromarray(pixels.clip(0, 255).astype(numpy.uint8))


class LatentPreview:
    """The map, as a matrix with a row for each channel and a last one for what is added. `spread` is the standard
    deviation of latents that are a picture."""

    def __init__(self, matrix: Any, spread: float) -> None:
        self._matrix = matrix
        self._spread = spread

    @classmethod
    def fitted(cls, latents: Any, image: Any) -> LatentPreview:
        """The map that makes of `latents` what is nearest to `image`, into which they were decoded."""
        torch: Any = importlib.import_module("torch")
        numpy: Any = importlib.import_module("numpy")
        grid = as_grid(latents, image.width / image.height)
        box = importlib.import_module("PIL.Image").Resampling.BOX
        small = numpy.array(image.resize((grid.shape[2], grid.shape[1]), box), numpy.float64)
        colors = torch.from_numpy(small).reshape(-1, 3)
        return cls(torch.linalg.lstsq(_rows(grid), colors).solution, float(grid.std()))

    def picture(self, latents: Any, ratio: float) -> Any:
        """A picture of one pixel for each latent; `ratio` is that of the whole one, width to height."""
        grid = as_grid(latents, ratio)
        # Some samplers begin with noise that is a dozen times stronger than any picture.
        colors = _rows(grid / max(1.0, float(grid.std()) / self._spread)) @ self._matrix
        pixels = colors.clamp(0, 255).round().byte().reshape(*grid.shape[1:], 3)
        return importlib.import_module("PIL.Image").fromarray(pixels.numpy())


def is_grid(latents: Any) -> bool:
    """Whether the latents of a square picture have one of the two forms that are known here: channels, rows and
    columns, or a list of tokens, row by row."""
    form: tuple[int, ...] = latents.shape
    return len(form) == 4 or (len(form) == 3 and isqrt(form[1]) ** 2 == form[1])


def as_grid(latents: Any, ratio: float) -> Any:
    """The latents of one picture as channels, rows and columns, in float32 on the CPU."""
    latents = latents[0].float().cpu()
    if latents.ndim == 3:
        return latents
    rows = round((len(latents) / ratio) ** 0.5)
    return latents.T.reshape(latents.shape[1], rows, -1)


def _rows(grid: Any) -> Any:
    """A row of channels for each latent, with a 1 at its end."""
    torch: Any = importlib.import_module("torch")
    rows = grid.flatten(1).T.double()
    return torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], 1)
