"""Decode an audio file to samples, within limits.

The containers of `audio_containers`, of any usual rate, are decoded with FFmpeg (PyAV). The files are untrusted:
workers decode them in a separate process, see `audio_decoder`.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from deployments.media.audio_containers import (
    CONTAINERS,
    extent,
    id3_size,
    is_chunk,
    kind_of,
    ogg_is_truncated,
    with_sizes,
    xing_is_trusted,
)
from deployments.media.downmix import mixed
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
PLACEHOLDER_S = 86_400.0
"""A compressed file that declares a day or more has a placeholder for its length."""
MAX_OVER_SCALE = 0.01
"""Part of the samples that may exceed full scale, as the peaks of a loud recording do. More of them have another
scale, such as 16-bit integers that were stored as floats."""


def decode(data: bytes, max_s: float) -> Pcm:
    """`read` without its notes."""
    return read(data, max_s)[0]


def read(data: bytes, max_s: float) -> tuple[Pcm, list[str]]:
    """The file's samples: 16-bit integers, mono, 16 kHz; and sentences about what was changed or left out.

    Decoding stops after `max_s` seconds, whatever the header claims. Raises `InvalidRequest` that names the fault.
    """
    import av

    kind = kind_of(data)
    try:
        decoding = _Decoding(kind, data[0 if kind == "mp3" else id3_size(data) :], max_s)
        return decoding.samples(), decoding.notes
    except av.FFmpegError as exc:
        name = CONTAINERS[kind].name.partition(" ")[2]
        raise refused("readable", f"is not a whole {name} file: it cannot be decoded") from exc
    except (ValueError, ArithmeticError) as exc:  # PyAV's errors for contradictory headers
        raise refused("readable", f"is {CONTAINERS[kind].name} file that contradicts itself") from exc


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
        self._container = CONTAINERS[kind]
        self._extent = extent(kind, data)
        if self._extent is not None:
            self._data = with_sizes(kind, data, self._extent)
        self._blocks: list[Any] = []
        self._count = self._over_scale = 0
        self._peak = 1.0
        self.notes: list[str] = []

    def samples(self) -> Pcm:
        """All samples of the file."""
        source = io.BytesIO(self._data)
        with self._av.open(source, format=self._container.demuxer, metadata_errors="ignore") as file:
            if not file.streams.audio:
                raise refused("sound", "holds no sound")
            stream = file.streams.audio[0]
            declared_s = self._declared_s(stream)
            self._check_header(stream, declared_s)
            stream.codec_context.thread_count = 1
            bytes_per_s = (stream.codec_context.bit_rate or 0) / 8
            self._decode(file, stream)
            self._check_complete(declared_s, bytes_per_s)
        if not self._count:
            raise refused("sound", "holds no sound")
        return self._joined()

    def _check_header(self, stream: Any, declared_s: float | None) -> None:
        codec = stream.codec_context
        if codec is None or codec.name not in self._container.codecs:
            raise refused("codec", f"is {self._container.name} file with an unsupported codec")
        if codec.sample_rate not in RATES:
            raise refused("sample rate", f"must have {RATES[0]} to {RATES[-1]} samples per second")
        if not 1 <= codec.layout.nb_channels <= MAX_CHANNELS:
            raise refused("channels", f"must have 1 to {MAX_CHANNELS} channels")
        if declared_s is not None and declared_s > self._max_s:
            raise self._too_long()

    def _declared_s(self, stream: Any) -> float | None:
        """The duration in the file's header; None where it has none, and FFmpeg would estimate it from the bit rate.
        Uncompressed files are measured in bytes instead."""
        if stream.duration is None or self._extent is not None:
            return None
        if self._kind == "mp3" and not xing_is_trusted(self._data):
            return None
        declared_s = float(stream.duration * stream.time_base)
        return declared_s if declared_s < PLACEHOLDER_S else None

    def _decode(self, file: Any, stream: Any) -> None:
        resampler = self._av.AudioResampler(format="flt", rate=SAMPLE_RATE)
        pending = self._av.AudioFifo()
        for packet in file.demux(stream):
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
        np = self._np
        for frame in frames:
            block = mixed(frame.to_ndarray().reshape(-1, frame.layout.nb_channels))
            if not np.isfinite(block).all():
                raise refused("finite", "holds samples that are not finite numbers")
            self._count += len(block)
            if self._count > self._max_s * SAMPLE_RATE:
                raise self._too_long()
            if over := int(np.count_nonzero(np.abs(block) > 1)):
                self._over_scale += over
                self._peak = max(self._peak, float(np.abs(block).max()))
                self._blocks.append(block)
            else:
                self._blocks.append(self._integers(block))

    def _integers(self, block: Any) -> Any:
        np = self._np
        return np.clip(np.rint(block * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)

    def _joined(self) -> Pcm:
        """One array. Only a block with samples beyond full scale is still one of floats."""
        np, scale = self._np, 1.0
        if self._over_scale > MAX_OVER_SCALE * self._count:
            scale = 1 / self._peak
            self.notes.append(
                f"The samples of the file reach {self._peak:.4g} times full scale; they were scaled down to it"
            )
        for i, block in enumerate(self._blocks):
            if block.dtype != np.int16:
                self._blocks[i] = self._integers(block * np.float32(scale))
            elif scale != 1:
                self._blocks[i] = np.rint(block * scale).astype(np.int16)
        return np.concatenate(self._blocks)  # type: ignore[no-any-return]

    def _too_long(self) -> InvalidRequest:
        return refused(f"seconds <= {self._max_s:g}", f"must be at most {self._max_s:g} seconds long; send it in parts")

    def _check_complete(self, declared_s: float | None, bytes_per_s: float) -> None:
        decoded_s = self._count / SAMPLE_RATE
        if declared_s is not None and decoded_s < declared_s - MAX_MISSING_S:
            raise refused(
                "whole", f"is cut short or damaged: {decoded_s:.1f} of {declared_s:.1f} seconds could be decoded"
            )
        if self._kind == "ogg" and ogg_is_truncated(self._data):
            raise refused("whole", f"is cut short after {decoded_s:.1f} seconds; send all of it")
        if self._extent is None or not bytes_per_s:
            return
        start, declared, _ = self._extent
        if self._extent.missing > MAX_MISSING_S * bytes_per_s:
            whole_s = (declared or 0) / bytes_per_s
            raise refused("whole", f"is cut short after {decoded_s:.1f} of {whole_s:.1f} seconds; send all of it")
        end = start + (declared or 0)
        left_s = self._extent.left_over / bytes_per_s
        if left_s > MAX_MISSING_S and not is_chunk(self._data, end + end % 2):
            self.notes.append(
                f"The header of the file declares {decoded_s:.1f} seconds of sound; what follows, as long as "
                f"{left_s:.1f} seconds, was left out"
            )
