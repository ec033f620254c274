"""The handwritten digits of scikit-learn as images: dark ink on white paper, 32 x 32 pixels.

They are 1,797 grey images of 8 x 8 pixels with 17 shades, from the test set of E. Alpaydin and C. Kaynak, "Optical
Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch.nn import functional

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""The digits by name."""
SIDE = 32
"""Width and height of an image in pixels."""
HELD_OUT = 360
"""Number of images that no model is trained on."""


def load_images() -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """The training images and the held-out ones: each float32 [n, 1, 32, 32] with 0 for ink and 1 for paper, and the
    digits, int64 [n]. Deterministic."""
    raw = load_digits()
    ink = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 16
    images = 1 - functional.interpolate(ink, size=(SIDE, SIDE), mode="bicubic", align_corners=False).clamp(0, 1)
    labels = torch.tensor(raw.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    kept, held = order[HELD_OUT:], order[:HELD_OUT]
    return (images[kept], labels[kept]), (images[held], labels[held])


def varied(images: Any, strength: float = 1.0) -> Any:
    """The images randomly rotated, scaled and shifted: by up to 12 degrees, 15 % and 2 pixels."""
    count = len(images)
    angle = torch.empty(count).uniform_(-1, 1) * strength * math.radians(12)
    scale = 1 + torch.empty(count).uniform_(-1, 1) * strength * 0.15
    shift = torch.empty(count, 2, 1).uniform_(-1, 1) * strength * 2 / (SIDE / 2)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()], 1), torch.stack([angle.sin(), angle.cos()], 1)], 1)
    grid = functional.affine_grid(
        torch.cat([turn * scale[:, None, None], shift], 2), list(images.shape), align_corners=False
    )
    ink = functional.grid_sample(1 - images, grid, align_corners=False)  # paper outside of the image
    return 1 - ink.clamp(0, 1)


def augmented(images: Any) -> Any:
    """The images varied, with paler ink and some noise; one of four has light ink on dark paper."""
    count = len(images)
    ink = (1 - varied(images)) * torch.empty(count, 1, 1, 1).uniform_(0.6, 1)
    noisy = 1 - ink + torch.randn_like(images) * torch.empty(count, 1, 1, 1).uniform_(0, 0.08)
    inverted = torch.rand(count, 1, 1, 1) < 0.25
    return torch.where(inverted, 1 - noisy, noisy).clamp(0, 1)


def pixel_values(images: Any) -> Any:
    """A model's input: float32 [n, 3, 32, 32] in [-1, 1], as image processors produce with mean and standard
    deviation 0.5."""
    return (images * 2 - 1).expand(-1, 3, -1, -1)
