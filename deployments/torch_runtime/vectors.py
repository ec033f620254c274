"""Vectors of texts and images in the form of a response."""

from __future__ import annotations

import base64
from typing import Any

Vector = Any
"""A model's vector: a one-dimensional numpy array of float32."""


def shaped(vector: Vector, normalize: bool, encoding: str) -> list[float] | str:
    """The vector as a list of numbers, or as little-endian float32 in base64; of length 1 if `normalize`."""
    if normalize:
        vector = vector / max(float(vector @ vector) ** 0.5, 1e-12)
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    # Nine decimals are more precise than float32, and half as long as the shortest exact form.
    values: list[float] = (vector.astype("f8").round(9) if normalize else vector).tolist()
    return values
