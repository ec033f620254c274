"""Small audio files of every kind, made on the spot."""

from __future__ import annotations

import io
import struct
from typing import Any

import av
import numpy as np

CODECS = {
    "wav": ("wav", "pcm_s16le", "mono", 16_000),
    "flac": ("flac", "flac", "stereo", 44_100),
    "vorbis": ("ogg", "vorbis", "stereo", 44_100),
    "opus": ("ogg", "libopus", "mono", 48_000),
    "mp3": ("mp3", "libmp3lame", "stereo", 44_100),
}
"""Container, codec, channels and rate by the name of the test."""


def tone(seconds: float, rate: int) -> Any:
    """A tone of 440 Hz that swells and fades."""
    at = np.arange(int(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * 440 * at) * np.sin(np.pi * at / seconds)).astype(np.float32)


def encoded(name: str, samples: Any = None, seconds: float = 1.0) -> bytes:
    """A file of that codec with `samples` (at the codec's rate), or with a tone."""
    container, codec, layout, rate = CODECS[name]
    samples = tone(seconds, rate) if samples is None else samples
    target = io.BytesIO()
    with av.open(target, "w", format=container) as file:
        stream: Any = file.add_stream(codec, rate=rate, layout=layout, options={"strict": "experimental"})
        for at in range(0, len(samples), 1024):
            block = np.tile(samples[at : at + 1024], (2 if layout == "stereo" else 1, 1))
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, at
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return target.getvalue()


def wav(
    data: bytes, rate: int = 16_000, channels: int = 1, bits: int = 16, form: int = 1, size: int | None = None
) -> bytes:
    """A WAV with exactly that header, right or wrong. `form` 1 is integers, 3 is floats; `size` is what it claims."""
    size = len(data) if size is None else size
    frame = channels * bits // 8
    head = struct.pack("<HHIIHH", form, channels, rate, rate * frame & 0xFFFFFFFF, frame & 0xFFFF, bits)
    whole = min(size + 36, 0xFFFFFFFF)
    return b"RIFF" + struct.pack("<I", whole) + b"WAVEfmt \x10\0\0\0" + head + b"data" + struct.pack("<I", size) + data
