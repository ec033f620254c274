"""Encode samples for the response: as bytes of the events of a stream, or as a file.

Samples are float32, mono. Libraries are imported inside functions: the ingress imports this module too, and vLLM's CPU
worker fails to start in a process that has imported soundfile.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    Samples = np.ndarray[tuple[int], np.dtype[np.float32]]

SampleFormat = Literal["f32", "f32le", "pcm_s16le"]
FileFormat = Literal["wav", "flac", "ogg", "mp3"]

MP3_RATES = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000})

MAX_CHUNK_S = 1.0
"""Seconds of audio in one event. It keeps an event below 0.2 MB."""

MAX_BLOCK_SAMPLES = 65_536
"""Samples per write to a file. The Vorbis encoder keeps a block on the stack; a block of a minute overflows it."""

FADE_S = 0.005


class _File(NamedTuple):
    container: str
    codec: str
    media_type: str


_FILES: dict[str, _File] = {
    "wav": _File("WAV", "PCM_16", "audio/wav"),
    "flac": _File("FLAC", "PCM_16", "audio/flac"),
    "ogg": _File("OGG", "VORBIS", "audio/ogg"),
    "mp3": _File("MP3", "MPEG_LAYER_III", "audio/mpeg"),
}


class Signal:
    """One continuous signal from the pieces of an engine: resampled, clipped to [-1, 1], and faded out after `max_s`
    seconds."""

    def __init__(self, engine_rate: int, rate: int, max_s: float) -> None:
        self.rate = rate
        self.samples = 0
        """Samples returned so far."""
        self.left_out = 0
        """Samples beyond the maximum length."""
        self.clipped = 0
        """Samples that exceeded [-1, 1]."""
        self._max_samples = round(max_s * rate)
        self._resampler: Any = None
        if engine_rate != rate:
            import soxr

            self._resampler = soxr.ResampleStream(engine_rate, rate, 1, dtype="float32")

    @property
    def full(self) -> bool:
        """Whether the signal has reached its maximum length."""
        return self.samples >= self._max_samples

    def feed(self, samples: Samples) -> Iterator[Samples]:
        """Add a piece. Returns the next part of the signal, in chunks."""
        return self._chunks(samples if self._resampler is None else self._resampler.resample_chunk(samples))

    def flush(self) -> Iterator[Samples]:
        """The end of the signal: the samples that the resampler still holds, in chunks."""
        import numpy as np

        if self._resampler is not None:
            yield from self._chunks(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))

    def _chunks(self, samples: Samples) -> Iterator[Samples]:
        import numpy as np

        if not np.isfinite(samples).all():  # the check is ten times faster than a replacement of nothing
            samples = np.nan_to_num(samples, posinf=0.0, neginf=0.0)
        if len(samples) and max(samples.max(), -samples.min()) > 1:
            self.clipped += int(np.count_nonzero(np.abs(samples) > 1))
            samples = np.clip(samples, -1, 1)
        remaining = self._max_samples - self.samples
        if len(samples) > remaining:
            self.left_out += len(samples) - remaining
            samples = faded(samples[:remaining], self.rate, fade_in=False)
        self.samples += len(samples)
        size = round(MAX_CHUNK_S * self.rate)
        for start in range(0, len(samples), size):
            yield samples[start : start + size]


def faded(samples: Samples, rate: int, *, fade_in: bool = True, fade_out: bool = True) -> Samples:
    """A copy of the samples that starts and ends at zero, so that it can be concatenated without a click."""
    import numpy as np

    count = min(round(FADE_S * rate), len(samples))
    ramp = np.linspace(0, 1, count, dtype=np.float32)
    samples = samples.copy()
    if fade_in:
        samples[:count] *= ramp
    if fade_out:
        samples[len(samples) - count :] *= ramp[::-1]
    return samples


def sample_bytes(samples: Samples, form: SampleFormat) -> bytes:
    """Little-endian bytes of samples in [-1, 1]: 16-bit integers for `pcm_s16le`, else float32."""
    import numpy as np

    return (np.round(samples * 32767).astype("<i2") if form == "pcm_s16le" else samples.astype("<f4")).tobytes()


def media_type(form: FileFormat) -> str:
    """The content type of a file."""
    return _FILES[form].media_type


def encode_file(parts: Iterable[bytes], rate: int, form: FileFormat) -> bytes:
    """Encode `f32le` samples as a file: 16 bits per sample, or the codec's default quality."""
    import numpy as np
    import soundfile

    target = io.BytesIO()
    file = _FILES[form]
    with soundfile.SoundFile(target, "w", rate, 1, file.codec, format=file.container) as writer:
        for part in parts:
            samples = np.frombuffer(part, "<f4")
            for start in range(0, len(samples), MAX_BLOCK_SAMPLES):
                writer.write(samples[start : start + MAX_BLOCK_SAMPLES])
    return target.getvalue()
