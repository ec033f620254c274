"""Decode untrusted audio files in a separate process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deployments.media.audio_containers import kind_of
from deployments.media.audio_files import FULL_SCALE
from deployments.media.decoder_process import DecoderProcess

if TYPE_CHECKING:
    import numpy as np

    Samples = np.ndarray[tuple[int], np.dtype[np.float32]]

TIMEOUT_S = 60
"""Time limit of one file: half an hour of Opus takes 8 s on a slow core."""


class AudioDecoder:
    """Thread-safe `audio_files.read`; one file at a time."""

    def __init__(self, max_s: float) -> None:
        self._process = DecoderProcess("deployments.media.audio_files:read", max_s, TIMEOUT_S)

    def decode(self, data: bytes, field: str = "audio") -> Samples:
        """The file's samples: float32 in [-1, 1], mono, 16 kHz. Raises `InvalidRequest` about `field`, also for a file
        that crashes the process."""
        return self.read(data, field)[0]

    def read(self, data: bytes, field: str = "audio") -> tuple[Samples, list[str]]:
        """As `decode`, with sentences about what was changed or left out."""
        kind_of(data, field)
        integers: Any
        integers, notes = self._process.read(data, field)
        return integers.astype("float32") / FULL_SCALE, notes

    @property
    def pid(self) -> int | None:
        """The id of the decoder process, if it runs."""
        return self._process.pid

    def close(self) -> None:
        """End the process."""
        self._process.close()
