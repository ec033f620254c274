"""Vectors of texts and images, as a client wants them."""

from __future__ import annotations

import base64
from typing import Any

Vector = Any
"""A vector as the model gives it: a numpy array of float32 in one dimension."""


def shaped(vector: Vector, normalize: bool, encoding: str) -> list[float] | str:
    """A vector as a client wants it: of length 1 if `normalize`, and as base64 of little-endian float32, or numbers."""
    if normalize:
        vector = vector / max(float(vector @ vector) ** 0.5, 1e-12)
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    # Nine digits after the point are less than float32's own error, and half of what would be written otherwise.
    values: list[float] = (vector.astype("f8").round(9) if normalize else vector).tolist()
    return values
