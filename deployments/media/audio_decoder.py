"""Decodes the audio files of strangers, in a process of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deployments.media.audio_files import FULL, kind_of
from deployments.media.decoder_process import DecoderProcess

if TYPE_CHECKING:
    import numpy as np

    Samples = np.ndarray[tuple[int], np.dtype[np.float32]]

LIMIT_S = 60
"""Seconds that one file may keep the decoder busy: half an hour of Opus takes 8 on a slow core."""


class AudioDecoder:
    """`audio_files.decode` for use from any thread; one file is decoded at a time."""

    def __init__(self, max_s: float) -> None:
        self._process = DecoderProcess("deployments.media.audio_files:decode", max_s, LIMIT_S)

    def decode(self, data: bytes, field: str = "audio") -> Samples:
        """The file's sound: float32 in [-1, 1], mono, 16,000 samples per second. Raises `InvalidRequest` about `field`;
        also on a file that ends the process."""
        kind_of(data, field)
        integers: Any = self._process.decode(data, field)
        return integers.astype("float32") / FULL  # type: ignore[no-any-return]

    @property
    def pid(self) -> int | None:
        """The process that decodes, where there is one."""
        return self._process.pid

    def close(self) -> None:
        """End the process."""
        self._process.close()
