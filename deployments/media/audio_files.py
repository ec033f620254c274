"""From an audio file to samples, within bounds.

WAV, FLAC, OGG (Vorbis, Opus) and MP3 of any usual rate, told apart by their first bytes, are read with FFmpeg (PyAV).
Files come from strangers: workers decode them in a process of its own, see `audio_decoder`.
"""

from __future__ import annotations

import importlib
import io
import re
from typing import TYPE_CHECKING, Any

from rbee_serve.errors import InvalidRequest

if TYPE_CHECKING:
    import numpy as np

    Pcm = np.ndarray[tuple[int], np.dtype[np.int16]]

SAMPLE_RATE = 16_000
"""Samples per second of what is decoded; Whisper's."""

FULL = 32_768
"""What 1.0 is as a 16-bit integer."""

GATHERED = 65_536
"""Samples that are resampled at once: a file of an hour has a million frames."""

RATES = range(1_000, 384_001)
MAX_CHANNELS = 8
CUT_SHORT_S = 0.2
"""Seconds by which a file may be shorter than it says: encoders pad, and round."""

# Only these reach a decoder: FFmpeg knows hundreds, and a WAV may hold nearly any of them.
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
"""What a WAV says of its size that was written to a pipe."""


def decode(data: bytes, max_s: float) -> Pcm:
    """The file's sound: 16-bit integers, mono, 16,000 samples per second, as faster-whisper decodes it too.

    Stops as soon as it is longer than `max_s` seconds, whatever its header says. Raises `InvalidRequest` that says what
    is wrong with the file.
    """
    av: Any = importlib.import_module("av")
    kind = kind_of(data)
    try:
        return _Decoding(kind, data, max_s).sound()
    except av.FFmpegError as exc:
        raise refused("readable", f"is not a whole {kind.upper()} file: it cannot be decoded") from exc
    except (ValueError, ArithmeticError) as exc:  # what PyAV makes of headers that contradict themselves
        raise refused("readable", f"is a {kind.upper()} file that contradicts itself") from exc


def kind_of(data: bytes, field: str = "audio") -> str:
    """`wav`, `flac`, `ogg` or `mp3`, by the first bytes. Raises `InvalidRequest` about `field` for all else."""
    for kind, magic in _MAGIC.items():
        if magic.match(data):
            return kind
    raise InvalidRequest.of_field(field, "format", "is not a WAV, FLAC, OGG or MP3 file; send one of these")


def refused(constraint: str, sentence: str) -> InvalidRequest:
    """What is wrong with the file."""
    return InvalidRequest.of_field("audio", constraint, sentence)


class _Decoding:
    """One file on its way to samples."""

    def __init__(self, kind: str, data: bytes, max_s: float) -> None:
        self._av: Any = importlib.import_module("av")
        self._np: Any = importlib.import_module("numpy")
        self._kind, self._data, self._max_s = kind, data, max_s
        self._blocks: list[Pcm] = []
        self._count = 0

    def sound(self) -> Pcm:
        """All of the file."""
        source = io.BytesIO(self._data)
        with self._av.open(source, format=self._kind, metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise refused("sound", "holds no sound")
            stream = container.streams.audio[0]
            declared_s = self._declared_s(stream)
            self._check_header(stream, declared_s)
            stream.codec_context.thread_count = 1
            self._read(container, stream)
            self._check_whole(declared_s)
        if not self._count:
            raise refused("sound", "holds no sound")
        return self._np.concatenate(self._blocks)  # type: ignore[no-any-return]

    def _check_header(self, stream: Any, declared_s: float | None) -> None:
        codec = stream.codec_context
        if codec is None or codec.name not in _CODECS[self._kind]:
            raise refused("codec", f"is a {self._kind.upper()} file with a codec that is not taken here")
        if codec.sample_rate not in RATES:
            raise refused("sample rate", f"must have {RATES[0]} to {RATES[-1]} samples per second")
        if not 1 <= codec.layout.nb_channels <= MAX_CHANNELS:
            raise refused("channels", f"must have 1 to {MAX_CHANNELS} channels")
        if declared_s is not None and declared_s > self._max_s:
            raise self._too_long()

    def _declared_s(self, stream: Any) -> float | None:
        """How long the file says it is; None where it does not say, and FFmpeg would guess from the bit rate."""
        if stream.duration is None or (self._kind == "mp3" and not re.search(rb"Xing|Info", self._data[: 1 << 16])):
            return None
        return float(stream.duration * stream.time_base)

    def _read(self, container: Any, stream: Any) -> None:
        resampler = self._av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        gathered = self._av.AudioFifo()
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except self._av.InvalidDataError:
                continue  # a player would go on too; too much of it is told by the length
            for frame in frames:
                frame.pts = None
                gathered.write(frame)
            if gathered.samples >= GATHERED:
                self._keep(resampler.resample(gathered.read()))
        if gathered.samples:
            self._keep(resampler.resample(gathered.read()))
            self._keep(resampler.resample(None))

    def _keep(self, frames: Any) -> None:
        for frame in frames:
            block = frame.to_ndarray()[0]
            if not self._np.isfinite(block).all():
                raise refused("finite", "holds samples that are not finite numbers")
            self._count += len(block)
            if self._count > self._max_s * SAMPLE_RATE:
                raise self._too_long()
            self._blocks.append(self._np.clip(self._np.rint(block * FULL), -FULL, FULL - 1).astype(self._np.int16))

    def _too_long(self) -> InvalidRequest:
        return refused(f"seconds <= {self._max_s:g}", f"must be at most {self._max_s:g} seconds long; send it in parts")

    def _check_whole(self, declared_s: float | None) -> None:
        decoded_s = self._count / SAMPLE_RATE
        if declared_s is not None and decoded_s < declared_s - CUT_SHORT_S:
            raise refused(
                "whole", f"is cut short or damaged: {decoded_s:.1f} of {declared_s:.1f} seconds could be decoded"
            )
        if (self._kind == "wav" and self._wav_is_cut()) or (self._kind == "ogg" and self._ogg_is_cut()):
            raise refused("whole", f"is cut short after {decoded_s:.1f} seconds; send all of it")

    def _wav_is_cut(self) -> bool:
        size = int.from_bytes(self._data[4:8], "little")
        return size not in _UNKNOWN_SIZES and len(self._data) < size + 8

    def _ogg_is_cut(self) -> bool:
        """Whether the file ends within a page. One that lacks its last page may be a recording of a live stream."""
        at = self._data.rfind(b"OggS")
        head = self._data[at : at + 27]
        if len(head) < 27:
            return True
        sizes = self._data[at + 27 : at + 27 + head[26]]
        return len(self._data) < at + 27 + head[26] + sum(sizes)
