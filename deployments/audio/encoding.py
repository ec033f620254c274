"""Samples as they are sent: numbers or bytes in the events of a stream, or a file.

Everywhere here samples are float32, mono. The libraries are imported by the functions that use them: the ingress
imports this module too, and whoever imports soundfile early cannot start vLLM's CPU worker any more.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rbee_serve.outputs import AudioChunkOutput

if TYPE_CHECKING:
    import numpy as np

    Samples = np.ndarray[tuple[int], np.dtype[np.float32]]

SampleFormat = Literal["f32", "f32le", "pcm_s16le"]
FileFormat = Literal["wav", "flac", "ogg", "mp3"]

MP3_RATES = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000})

CHUNK_S = 1.0
"""Seconds of sound in one event at most: what is sent at once is no larger than 0.2 MB."""

BLOCK_SAMPLES = 65_536
"""Samples that are written to a file at once. The Vorbis encoder holds a block on the stack: a minute kills the
process."""

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
    """One continuous signal out of an engine's pieces: resampled, in [-1, 1], and no longer than `most_s` seconds, at
    which it is faded out."""

    def __init__(self, engine_rate: int, rate: int, most_s: float) -> None:
        self.rate = rate
        self.samples = 0
        """How many have come out."""
        self._most = round(most_s * rate)
        self._resampler: Any = None
        if engine_rate != rate:
            soxr = importlib.import_module("soxr")
            self._resampler = soxr.ResampleStream(engine_rate, rate, 1, dtype="float32")

    @property
    def full(self) -> bool:
        """Whether it is as long as it may be."""
        return self.samples >= self._most

    def feed(self, samples: Samples) -> Iterator[Samples]:
        """The next part of the signal, in chunks."""
        return self._chunks(samples if self._resampler is None else self._resampler.resample_chunk(samples))

    def rest(self) -> Iterator[Samples]:
        """The last part: what the resampler has kept back."""
        import numpy as np

        if self._resampler is not None:
            yield from self._chunks(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))

    def _chunks(self, samples: Samples) -> Iterator[Samples]:
        import numpy as np

        if not np.isfinite(samples).all():  # ten times faster than to replace what is not there
            samples = np.nan_to_num(samples, posinf=0.0, neginf=0.0)
        samples = np.clip(samples, -1, 1)
        left = self._most - self.samples
        if len(samples) > left:
            samples = faded(samples[:left], self.rate, begin=False)
        self.samples += len(samples)
        size = round(CHUNK_S * self.rate)
        for begin in range(0, len(samples), size):
            yield samples[begin : begin + size]


def faded(samples: Samples, rate: int, *, begin: bool = True, end: bool = True) -> Samples:
    """The samples with a beginning and an end of silence, so that they can stand beside any others without a click."""
    import numpy as np

    count = min(round(FADE_S * rate), len(samples))
    ramp = np.linspace(0, 1, count, dtype=np.float32)
    samples = samples.copy()
    if begin:
        samples[:count] *= ramp
    if end:
        samples[len(samples) - count :] *= ramp[::-1]
    return samples


def chunk(samples: Samples, rate: int, form: SampleFormat, i: int) -> AudioChunkOutput:
    """The event value of these samples."""
    import numpy as np

    data = np.round(samples * 32767).astype("<i2") if form == "pcm_s16le" else samples.astype("<f4")
    encoding = None if form == "f32" else form
    return AudioChunkOutput(samples=data.tobytes(), sample_rate=rate, encoding=encoding, i=i)


def media_type(form: FileFormat) -> str:
    """The content type of a file."""
    return _FILES[form].media_type


def encode_file(parts: Iterable[bytes], rate: int, form: FileFormat) -> bytes:
    """A file of 16 bits a sample, or of the codec's own quality, out of `f32le` samples."""
    import numpy as np

    soundfile: Any = importlib.import_module("soundfile")
    target = io.BytesIO()
    file = _FILES[form]
    with soundfile.SoundFile(target, "w", rate, 1, file.codec, format=file.container) as writer:
        for part in parts:
            samples = np.frombuffer(part, "<f4")
            for begin in range(0, len(samples), BLOCK_SAMPLES):
                writer.write(samples[begin : begin + BLOCK_SAMPLES])
    return target.getvalue()
