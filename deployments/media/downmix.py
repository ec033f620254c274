"""One channel from several."""

from __future__ import annotations

from typing import Any

MIN_KEPT_ENERGY = 0.1
"""The energy of the summed channels, as a part of the loudest one's, below which they cancel each other."""


def mixed(samples: Any) -> Any:
    """The mean of the channels of an array of frames by channels. Where they cancel each other, as those of a
    microphone with one pole reversed do, the loudest channel instead. It has the same scale as the mean."""
    import numpy as np

    if samples.shape[1] == 1:
        return samples[:, 0]
    mean = samples.mean(axis=1)
    energies = np.einsum("ij,ij->j", samples, samples)
    loudest = int(energies.argmax())
    if np.dot(mean, mean) * samples.shape[1] ** 2 < MIN_KEPT_ENERGY * energies[loudest]:
        return samples[:, loudest]
    return mean
