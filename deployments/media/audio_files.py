"""Decode an audio file to samples, within limits.

WAV, FLAC, OGG (Vorbis, Opus) and MP3 of any usual rate, detected by their first bytes, are decoded with FFmpeg (PyAV).
The files are untrusted: workers decode them in a separate process, see `audio_decoder`.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from rbee_serve.errors import InvalidRequest

if TYPE_CHECKING:
    import numpy as np

    Pcm = np.ndarray[tuple[int], np.dtype[np.int16]]

SAMPLE_RATE = 16_000
"""Samples per second of the result; Whisper's rate."""

FULL_SCALE = 32_768
"""1.0 as a 16-bit integer."""

MIN_BLOCK_SAMPLES = 65_536
"""Samples that are collected before they are resampled together: a file of an hour has a million frames."""

RATES = range(1_000, 384_001)
MAX_CHANNELS = 8
MAX_MISSING_S = 0.2
"""Seconds by which a file may be shorter than its header claims: encoders pad, and round."""

# Only these codecs are allowed: FFmpeg has hundreds, and a WAV may contain nearly any of them.
_CODECS = {
    "wav": frozenset(
        "pcm_u8 pcm_s16le pcm_s24le pcm_s32le pcm_f32le pcm_f64le pcm_alaw pcm_mulaw".split()
    ),
    "flac": frozenset({"flac"}),
    "ogg": frozenset({"vorbis", "opus"}),
    "mp3": frozenset({"mp3", "mp3float"}),
}  # fmt: skip
_MAGIC = {
    "wav": re.compile(rb"RIFF....WAVE", re.DOTALL),
    "flac": re.compile(rb"fLaC"),
    "ogg": re.compile(rb"OggS"),
    "mp3": re.compile(rb"ID3|\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff]"),
}
_UNKNOWN_SIZES = frozenset({0, 0xFFFFFFFF})
"""The size field of a WAV that was written to a pipe."""


def decode(data: bytes, max_s: float) -> Pcm:
    """The file's samples: 16-bit integers, mono, 16 kHz, the same as faster-whisper's decoder gives.

    Decoding stops after `max_s` seconds, whatever the header claims. Raises `InvalidRequest` that names the fault.
    """
    import av

    kind = kind_of(data)
    try:
        return _Decoding(kind, data, max_s).samples()
    except av.FFmpegError as exc:
        raise refused("readable", f"is not a whole {kind.upper()} file: it cannot be decoded") from exc
    except (ValueError, ArithmeticError) as exc:  # PyAV's errors for contradictory headers
        raise refused("readable", f"is a {kind.upper()} file that contradicts itself") from exc


def kind_of(data: bytes, field: str = "audio") -> str:
    """`wav`, `flac`, `ogg` or `mp3`, by the first bytes. Raises `InvalidRequest` about `field` for other files."""
    for kind, magic in _MAGIC.items():
        if magic.match(data):
            return kind
    raise InvalidRequest.of_field(field, "format", "is not a WAV, FLAC, OGG or MP3 file; send one of these")


def refused(constraint: str, message: str) -> InvalidRequest:
    """An error about the file."""
    return InvalidRequest.of_field("audio", constraint, message)


class _Decoding:
    """The decoding of one file."""

    def __init__(self, kind: str, data: bytes, max_s: float) -> None:
        import av
        import numpy

        self._av = av
        self._np: Any = numpy
        self._kind, self._data, self._max_s = kind, data, max_s
        self._blocks: list[Pcm] = []
        self._count = 0

    def samples(self) -> Pcm:
        """All samples of the file."""
        source = io.BytesIO(self._data)
        with self._av.open(source, format=self._kind, metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise refused("sound", "holds no sound")
            stream = container.streams.audio[0]
            declared_s = self._declared_s(stream)
            self._check_header(stream, declared_s)
            stream.codec_context.thread_count = 1
            self._decode(container, stream)
            self._check_complete(declared_s)
        if not self._count:
            raise refused("sound", "holds no sound")
        return self._np.concatenate(self._blocks)  # type: ignore[no-any-return]

    def _check_header(self, stream: Any, declared_s: float | None) -> None:
        codec = stream.codec_context
        if codec is None or codec.name not in _CODECS[self._kind]:
            raise refused("codec", f"is a {self._kind.upper()} file with an unsupported codec")
        if codec.sample_rate not in RATES:
            raise refused("sample rate", f"must have {RATES[0]} to {RATES[-1]} samples per second")
        if not 1 <= codec.layout.nb_channels <= MAX_CHANNELS:
            raise refused("channels", f"must have 1 to {MAX_CHANNELS} channels")
        if declared_s is not None and declared_s > self._max_s:
            raise self._too_long()

    def _declared_s(self, stream: Any) -> float | None:
        """The duration in the file's header; None where it has none, and FFmpeg would estimate it from the bit rate."""
        if stream.duration is None or (self._kind == "mp3" and not re.search(rb"Xing|Info", self._data[: 1 << 16])):
            return None
        return float(stream.duration * stream.time_base)

    def _decode(self, container: Any, stream: Any) -> None:
        resampler = self._av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        pending = self._av.AudioFifo()
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except self._av.InvalidDataError:
                continue  # as players do; the length reveals a large loss
            for frame in frames:
                frame.pts = None
                pending.write(frame)
            if pending.samples >= MIN_BLOCK_SAMPLES:
                self._append(resampler.resample(pending.read()))
        if pending.samples:
            self._append(resampler.resample(pending.read()))
            self._append(resampler.resample(None))

    def _append(self, frames: Any) -> None:
        for frame in frames:
            block = frame.to_ndarray()[0]
            if not self._np.isfinite(block).all():
                raise refused("finite", "holds samples that are not finite numbers")
            self._count += len(block)
            if self._count > self._max_s * SAMPLE_RATE:
                raise self._too_long()
            block = self._np.clip(self._np.rint(block * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1)
            self._blocks.append(block.astype(self._np.int16))

    def _too_long(self) -> InvalidRequest:
        return refused(f"seconds <= {self._max_s:g}", f"must be at most {self._max_s:g} seconds long; send it in parts")

    def _check_complete(self, declared_s: float | None) -> None:
        decoded_s = self._count / SAMPLE_RATE
        if declared_s is not None and decoded_s < declared_s - MAX_MISSING_S:
            raise refused(
                "whole", f"is cut short or damaged: {decoded_s:.1f} of {declared_s:.1f} seconds could be decoded"
            )
        if (self._kind == "wav" and self._wav_is_truncated()) or (self._kind == "ogg" and self._ogg_is_truncated()):
            raise refused("whole", f"is cut short after {decoded_s:.1f} seconds; send all of it")

    def _wav_is_truncated(self) -> bool:
        size = int.from_bytes(self._data[4:8], "little")
        return size not in _UNKNOWN_SIZES and len(self._data) < size + 8

    def _ogg_is_truncated(self) -> bool:
        """Whether the file ends inside a page. A missing last page is allowed: live streams are recorded so."""
        start = self._data.rfind(b"OggS")
        header = self._data[start : start + 27]
        if len(header) < 27:
            return True
        sizes = self._data[start + 27 : start + 27 + header[26]]
        return len(self._data) < start + 27 + header[26] + sum(sizes)
