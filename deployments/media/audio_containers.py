"""The containers of audio files: how each is detected, and how much sound it declares and holds."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from rbee_serve.errors import InvalidRequest


class Container(NamedTuple):
    """A kind of file: its name with an article, its first bytes, FFmpeg's demuxer, and the codecs that are allowed:
    FFmpeg has hundreds, and a WAV may contain nearly any of them."""

    name: str
    magic: re.Pattern[bytes]
    demuxer: str
    codecs: frozenset[str]


CONTAINERS = {
    "wav": Container(
        "a WAV",
        re.compile(rb"(?:RIFF|RF64|BW64)....WAVE", re.DOTALL),
        "wav",
        frozenset("pcm_u8 pcm_s16le pcm_s24le pcm_s32le pcm_f32le pcm_f64le pcm_alaw pcm_mulaw".split()),
    ),
    "flac": Container("a FLAC", re.compile(rb"fLaC"), "flac", frozenset({"flac"})),
    "ogg": Container("an OGG", re.compile(rb"OggS"), "ogg", frozenset({"vorbis", "opus", "flac"})),
    "aiff": Container(
        "an AIFF",
        re.compile(rb"FORM....AIF[FC]", re.DOTALL),
        "aiff",
        frozenset(
            "pcm_s8 pcm_s16be pcm_s24be pcm_s32be pcm_f32be pcm_f64be pcm_s16le pcm_alaw pcm_mulaw".split()
        ),
    ),
    "au": Container(
        "an AU",
        re.compile(rb"\.snd"),
        "au",
        frozenset("pcm_s8 pcm_s16be pcm_s24be pcm_s32be pcm_f32be pcm_f64be pcm_alaw pcm_mulaw".split()),
    ),
    "mp3": Container(
        "an MP3", re.compile(rb"\0{0,4096}\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff]"), "mp3", frozenset({"mp3", "mp3float"})
    ),
}  # fmt: skip

MIN_PLACEHOLDER_BYTES = 2**29
"""A program that writes to a pipe cannot know the size of its sound and declares a large one, between 1 and 4 GB.
A declared size from here on is taken for such a placeholder: it is sixteen times the largest upload."""

MAX_TAGS = 16
"""ID3 tags before a file. A hostile one could hold millions."""
MAX_CHUNKS = 1_000
"""Chunks of a file before that of its samples."""


class Extent(NamedTuple):
    """Where the samples of an uncompressed file begin, how many bytes its header declares (None: unknown), and how
    many bytes follow."""

    start: int
    declared: int | None
    present: int

    @property
    def missing(self) -> int:
        """Declared bytes that the file does not hold."""
        return max(0, (self.declared or 0) - self.present)

    @property
    def left_over(self) -> int:
        """Bytes after the declared ones."""
        return 0 if self.declared is None else max(0, self.present - self.declared - self.declared % 2)


def kind_of(data: bytes, field: str = "audio") -> str:
    """The key in `CONTAINERS`, by the first bytes after any ID3 tags. Raises `InvalidRequest` about `field` for other
    files."""
    start = id3_size(data)
    for kind, container in CONTAINERS.items():
        if container.magic.match(data, start):
            return kind
    if start:
        return "mp3"  # whose first frame may follow some padding
    raise InvalidRequest.of_field(field, "format", "is not a WAV, FLAC, OGG, MP3, AIFF or AU file; send one of these")


def id3_size(data: bytes) -> int:
    """The size of the ID3v2 tags at the beginning, which some programs write to files of any kind."""
    size = 0
    for _ in range(MAX_TAGS):
        if data[size : size + 3] != b"ID3" or len(data) < size + 10:
            break
        seven_bits = data[size + 6 : size + 10]
        footer = 10 if data[size + 5] & 0x10 else 0
        size += 10 + footer + sum((byte & 127) << shift for byte, shift in zip(seven_bits, (21, 14, 7, 0), strict=True))
    return size


def extent(kind: str, data: bytes) -> Extent | None:
    """The samples of an uncompressed file; None for other kinds, and for a header without samples."""
    match kind:
        case "wav":
            return _chunk(data, b"data", "little")
        case "aiff":
            found = _chunk(data, b"SSND", "big")
            return found and _extent(
                found.start + 8, (found.declared or 8) - 8, len(data)
            )  # after offset and block size
        case "au" if len(data) >= 24:
            return _extent(int.from_bytes(data[4:8], "big"), int.from_bytes(data[8:12], "big"), len(data))
    return None


def _chunk(data: bytes, name: bytes, order: Literal["little", "big"]) -> Extent | None:
    """The chunk of that name in a RIFF, RF64 or AIFF file."""
    position, long_size = 12, None
    for _ in range(MAX_CHUNKS):
        if len(data) < position + 8:
            break
        found, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], order)
        position += 8
        if found == b"ds64":  # the sizes of RF64, in 64 bits
            long_size = int.from_bytes(data[position + 8 : position + 16], "little")
        if found == name:
            return _extent(position, long_size if size == 0xFFFFFFFF and long_size is not None else size, len(data))
        position += size + size % 2
    return None


def _extent(start: int, declared: int, total: int) -> Extent:
    known = 0 < declared < MIN_PLACEHOLDER_BYTES
    return Extent(start, declared if known else None, max(0, total - start))


def with_sizes(kind: str, data: bytes, found: Extent) -> bytes:
    """The file with its real size where its header declares a placeholder that FFmpeg does not take for one."""
    if found.declared is not None or not found.present:
        return data
    changed = bytearray(data)
    if kind == "wav" and data[:4] != b"RIFF":  # RF64 without the sizes of its ds64
        changed[:4] = b"RIFF"
        changed[found.start - 4 : found.start] = found.present.to_bytes(4, "little")
    if kind == "au":
        changed[8:12] = b"\xff" * 4
    if kind == "aiff":
        changed[4:8] = (len(data) - 8).to_bytes(4, "big")
        changed[found.start - 12 : found.start - 8] = (found.present + 8).to_bytes(4, "big")
        if common := _chunk(data, b"COMM", "big"):
            channels, bits = (int.from_bytes(data[common.start + n :][:2], "big") for n in (0, 6))
            frames = found.present * 8 // max(8, channels * bits)
            changed[common.start + 2 : common.start + 6] = frames.to_bytes(4, "big")
    return bytes(changed)


def is_chunk(data: bytes, position: int) -> bool:
    """Whether the header of a chunk stands there."""
    return re.compile(rb"[ -~]{4}....", re.DOTALL).match(data, position) is not None


def ogg_is_truncated(data: bytes) -> bool:
    """Whether the file ends inside a page. A missing last page is allowed: live streams are recorded so."""
    start = data.rfind(b"OggS")
    header = data[start : start + 27]
    if len(header) < 27:
        return True
    sizes = data[start + 27 : start + 27 + header[26]]
    return len(data) < start + 27 + header[26] + sum(sizes)


def xing_is_trusted(data: bytes) -> bool:
    """Whether an MP3 has a header with its number of frames, and the file is not longer than that header's number of
    bytes: a file that was cut or joined without a new header is as long as it is."""
    start = id3_size(data)
    found = re.compile(rb"Xing|Info").search(data, start, start + 4096)
    if found is None:
        return False
    flags = int.from_bytes(data[found.end() : found.end() + 4], "big")
    if flags & 3 != 3:
        return bool(flags & 1)
    declared = int.from_bytes(data[found.end() + 8 : found.end() + 12], "big")
    return len(data) - start < declared
