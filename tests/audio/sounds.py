"""Small audio files of every supported format, generated on demand."""

from __future__ import annotations

import io
import struct
from typing import Any

import av
import numpy as np

CODECS = {
    "wav": ("wav", "pcm_s16le", "mono", 16_000),
    "aiff": ("aiff", "pcm_s24be", "stereo", 44_100),
    "au": ("au", "pcm_f32be", "stereo", 22_050),
    "flac": ("flac", "flac", "stereo", 44_100),
    "vorbis": ("ogg", "vorbis", "stereo", 44_100),
    "opus": ("ogg", "libopus", "mono", 48_000),
    "mp3": ("mp3", "libmp3lame", "stereo", 44_100),
}
"""Container, codec, channels and rate by format."""


def tone(seconds: float, rate: int) -> Any:
    """A tone of 440 Hz, faded in and out."""
    time = np.arange(int(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * 440 * time) * np.sin(np.pi * time / seconds)).astype(np.float32)


def encoded(name: str, samples: Any = None, seconds: float = 1.0) -> bytes:
    """A file in that format with `samples` (at the format's rate), or with a tone."""
    container, codec, layout, rate = CODECS[name]
    samples = tone(seconds, rate) if samples is None else samples
    target = io.BytesIO()
    with av.open(target, "w", format=container) as file:
        stream: Any = file.add_stream(codec, rate=rate, layout=layout, options={"strict": "experimental"})
        for start in range(0, len(samples), 1024):
            block = np.tile(samples[start : start + 1024], (2 if layout == "stereo" else 1, 1))
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, start
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return target.getvalue()


def wav(
    data: bytes, rate: int = 16_000, channels: int = 1, bits: int = 16, form: int = 1, size: int | None = None
) -> bytes:
    """A WAV with that header, valid or not. `form` 1 is integers, 3 is floats; `size` is the size in the header."""
    size = len(data) if size is None else size
    frame = channels * bits // 8
    head = struct.pack("<HHIIHH", form, channels, rate, rate * frame & 0xFFFFFFFF, frame & 0xFFFF, bits)
    whole = min(size + 36, 0xFFFFFFFF)
    return b"RIFF" + struct.pack("<I", whole) + b"WAVEfmt \x10\0\0\0" + head + b"data" + struct.pack("<I", size) + data
