"""The handwritten digits that scikit-learn carries, as pictures: dark ink on white paper, 32 pixels wide and high.

They are 1,797 grey pictures of 8 x 8 pixels with 17 shades, from the test set of E. Alpaydin and C. Kaynak, "Optical
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
"""Pixels of a picture's side."""
HELD_OUT = 360
"""Pictures that no model is trained on."""


def pictures() -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """The pictures to train on and those held out: each float32 [n, 1, 32, 32] with 0 for ink and 1 for paper, and the
    digits, int64 [n]. Always the same."""
    raw = load_digits()
    ink = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 16
    drawn = 1 - functional.interpolate(ink, size=(SIDE, SIDE), mode="bicubic", align_corners=False).clamp(0, 1)
    labels = torch.tensor(raw.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    kept, held = order[HELD_OUT:], order[:HELD_OUT]
    return (drawn[kept], labels[kept]), (drawn[held], labels[held])


def varied(drawn: Any, strength: float = 1.0) -> Any:
    """The pictures turned, scaled and moved a little, each by chance: up to 12 degrees, 15 % and 2 pixels."""
    count = len(drawn)
    angle = torch.empty(count).uniform_(-1, 1) * strength * math.radians(12)
    scale = 1 + torch.empty(count).uniform_(-1, 1) * strength * 0.15
    shift = torch.empty(count, 2, 1).uniform_(-1, 1) * strength * 2 / (SIDE / 2)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()], 1), torch.stack([angle.sin(), angle.cos()], 1)], 1)
    grid = functional.affine_grid(
        torch.cat([turn * scale[:, None, None], shift], 2), list(drawn.shape), align_corners=False
    )
    ink = functional.grid_sample(1 - drawn, grid, align_corners=False)  # outside of the picture is paper
    return 1 - ink.clamp(0, 1)


def as_people_draw(drawn: Any) -> Any:
    """The pictures varied, with paler ink, a little noise, and one of four in light ink on dark paper."""
    count = len(drawn)
    ink = (1 - varied(drawn)) * torch.empty(count, 1, 1, 1).uniform_(0.6, 1)
    picture = 1 - ink + torch.randn_like(drawn) * torch.empty(count, 1, 1, 1).uniform_(0, 0.08)
    inverted = torch.rand(count, 1, 1, 1) < 0.25
    return torch.where(inverted, 1 - picture, picture).clamp(0, 1)


def pixel_values(drawn: Any) -> Any:
    """What a model is shown: float32 [n, 3, 32, 32] from -1 to 1, as image processors make with mean and standard
    deviation 0.5."""
    return (drawn * 2 - 1).expand(-1, 3, -1, -1)
