"""The size that an audio file declares, against the sound that it holds."""

from __future__ import annotations

import io
import struct
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from deployments.media.audio_containers import id3_size
from deployments.media.audio_files import SAMPLE_RATE, decode, read
from rbee_serve.errors import InvalidRequest
from tests.audio.sounds import encoded, tone, wav

MAX_S = 60.0
SECONDS = 2.3
PCM = (tone(SECONDS, SAMPLE_RATE) * 32767).astype("<i2").tobytes()
SIZE = len(PCM)
LIST = b"LIST\x1a\0\0\0INFOISFT\x0e\0\0\0Recorder 1.2.3\0"[:34]
PLACEHOLDERS = [
    0, 1_000_000_000, 2_000_000_000, 0x7FFFF000, 0x7FFFFFDB, 0x7FFFFFFF, 0x80000000, 0xFFFFF000, 0xFFFFFFDB, 0xFFFFFFFF,
]  # fmt: skip


def seconds_of(data: bytes) -> float:
    """Seconds that are decoded without a note."""
    samples, notes = read(data, MAX_S)
    assert notes == []
    return len(samples) / SAMPLE_RATE


def refusal(data: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        decode(data, MAX_S)
    (violation,) = caught.value.violations
    assert violation.constraint == "whole"
    return violation.message


def wav_of(riff: int, data: int, rest: bytes = b"") -> bytes:
    file = bytearray(wav(PCM))
    file[4:8], file[40:44] = struct.pack("<I", riff), struct.pack("<I", data)
    return bytes(file) + rest


def written(container: str) -> bytearray:
    file = io.BytesIO()
    soundfile.write(file, tone(SECONDS, SAMPLE_RATE), SAMPLE_RATE, subtype="PCM_16", format=container)
    return bytearray(file.getvalue())


def piped(container: str, codec: str, **options: str) -> bytes:
    """A file as FFmpeg writes it to a pipe, where no size can be filled in afterwards."""

    class Pipe:
        data = b""

        def write(self, data: Any) -> int:
            self.data += bytes(data)
            return len(data)

    pipe = Pipe()
    with av.open(pipe, "w", format=container, options=options) as file:
        stream: Any = file.add_stream(codec, rate=48_000, layout="mono")
        sound = tone(SECONDS, 48_000)
        for start in range(0, len(sound), 960):
            frame = av.AudioFrame.from_ndarray(sound[None, start : start + 960].copy(), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48_000, start
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return pipe.data


@pytest.mark.parametrize("claimed", PLACEHOLDERS)
@pytest.mark.parametrize("riff", [None, 36, SIZE + 36])
def test_a_wav_with_a_placeholder_for_its_size_is_whole(claimed: int, riff: int | None) -> None:
    whole = min(claimed + 36, 0xFFFFFFFF) if riff is None else riff
    assert seconds_of(wav_of(whole, claimed)) == SECONDS


@pytest.mark.parametrize("riff", [0, 7, SIZE, SIZE + 44, SIZE + 9000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_the_size_of_the_riff_does_not_matter(riff: int) -> None:
    assert seconds_of(wav_of(riff, SIZE)) == SECONDS


@pytest.mark.parametrize("more", [1, 2, 3, 36, 44, 100])
def test_a_size_that_counts_the_header_too_is_no_missing_sound(more: int) -> None:
    assert seconds_of(wav_of(SIZE + 36 + more, SIZE + more)) == SECONDS


@pytest.mark.parametrize("claimed", [SIZE * 2, SIZE + SAMPLE_RATE, 50_000_000, 2**29 - 1])
def test_a_size_that_was_counted_tells_of_missing_sound(claimed: int) -> None:
    assert refusal(wav_of(claimed + 36, claimed)).startswith("is cut short after 2.3 of ")


def test_chunks_after_the_samples_are_no_sound() -> None:
    assert seconds_of(wav_of(SIZE + 36 + len(LIST), SIZE, LIST * 1000)) == SECONDS
    assert seconds_of(wav_of(SIZE + 36, SIZE, b"TAG" + bytes(125))) == SECONDS
    file = wav(PCM)
    assert seconds_of(file[:12] + LIST + file[12:]) == SECONDS


def test_a_file_that_is_cut_within_its_last_chunk_has_all_its_sound() -> None:
    assert seconds_of(wav_of(SIZE + 36 + 5000, SIZE, b"LIST\x88\x13\0\0INFO")) == SECONDS


def test_sound_beyond_the_declared_size_is_left_out_with_a_note() -> None:
    samples, notes = read(wav_of(SIZE // 2 + 36, SIZE // 2), MAX_S)
    assert len(samples) == SECONDS * SAMPLE_RATE / 2
    assert notes == [
        "The header of the file declares 1.1 seconds of sound; what follows, as long as 1.1 seconds, was left out"
    ]


@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64", "AIFF", "AU"])
def test_an_uncompressed_file_is_whole_or_told_to_be_cut(container: str) -> None:
    file = bytes(written(container))
    assert seconds_of(file) == SECONDS
    if container == "RF64":
        assert seconds_of(b"BW64" + file[4:]) == SECONDS
    for part in (0.3, 0.6, 0.9):
        assert "is cut short after " in refusal(file[: int(len(file) * part)])


@pytest.mark.parametrize("claimed", [0, 0x7FFFF000, 0x80000000, 0xFFFFFFFF, 2**40, 2**64 - 1])
def test_placeholders_of_the_other_uncompressed_files(claimed: int) -> None:
    rf64, au, aiff = written("RF64"), written("AU"), written("AIFF")
    start = rf64.index(b"ds64") + 8
    rf64[start : start + 16] = struct.pack("<QQ", claimed, claimed)
    assert seconds_of(bytes(rf64)) == SECONDS
    short = min(claimed, 0xFFFFFFFF)
    au[8:12] = struct.pack(">I", short)
    assert seconds_of(bytes(au)) == SECONDS
    common, sound = aiff.index(b"COMM") + 8, aiff.index(b"SSND") + 4
    aiff[4:8] = aiff[common + 2 : common + 6] = aiff[sound : sound + 4] = struct.pack(">I", short)
    assert seconds_of(bytes(aiff)) == SECONDS


@pytest.mark.parametrize(
    ("container", "codec", "options"),
    [("wav", "pcm_s16le", {}), ("wav", "pcm_f32le", {}), ("wav", "pcm_s24le", {"rf64": "always"}),
     ("aiff", "pcm_s16be", {}), ("au", "pcm_s16be", {}), ("flac", "flac", {}), ("mp3", "libmp3lame", {}),
     ("ogg", "libopus", {}), ("ogg", "flac", {})],
)  # fmt: skip
def test_what_ffmpeg_writes_to_a_pipe_is_whole(container: str, codec: str, options: dict[str, str]) -> None:
    assert seconds_of(piped(container, codec, **options)) == pytest.approx(SECONDS, abs=0.06)


@pytest.mark.parametrize("total", [0, 2**32, 2**36 - 1])
def test_a_flac_may_declare_no_or_any_length(total: int) -> None:
    file = bytearray(encoded("flac", seconds=SECONDS))
    file[21] = file[21] & 0xF0 | total >> 32
    file[22:26] = (total & 0xFFFFFFFF).to_bytes(4, "big")
    assert seconds_of(bytes(file)) == pytest.approx(SECONDS, abs=0.01)


@pytest.mark.parametrize("frames", [0, 10, 400, 100_000, 2**32 - 1])
def test_a_wrong_number_of_frames_in_an_mp3_is_ignored_where_its_bytes_are_there(frames: int) -> None:
    file = bytearray(encoded("mp3", seconds=SECONDS))
    start = file.index(b"Info")
    file[start + 8 : start + 12] = frames.to_bytes(4, "big")
    assert seconds_of(bytes(file)) == pytest.approx(SECONDS, abs=0.06)


@pytest.mark.parametrize("name", ["wav", "flac", "vorbis", "opus", "mp3"])
def test_tags_before_and_after_a_file_of_any_kind_are_skipped(name: str) -> None:
    file, length = encoded(name, seconds=SECONDS), pytest.approx(SECONDS, abs=0.06)
    plain = b"ID3\x03\0\0\0\0\x01\x05" + bytes(133)
    with_footer = b"ID3\x04\0\x10\0\0\0\x0a" + bytes(10) + b"3DI\x04\0\x10\0\0\0\x0a"
    ape = b"APETAGEX" + struct.pack("<IIII", 2000, 64, 1, 0x80000000) + bytes(72)
    if name == "mp3":
        assert seconds_of(bytes(1000) + file[id3_size(file) :]) == length
    for before, after in ((plain, b""), (with_footer + plain, b""), (b"", b"TAG" + bytes(125)), (plain, ape)):
        assert seconds_of(before + file + after) == length


@pytest.mark.parametrize("name", ["vorbis", "opus"])
def test_an_ogg_without_a_last_page_or_with_a_second_file_behind_it_is_whole(name: str) -> None:
    file = encoded(name, seconds=SECONDS)
    assert seconds_of(file + encoded(name, seconds=1.0)) == pytest.approx(SECONDS + 1, abs=0.06)
    assert SECONDS - 0.5 < seconds_of(file[: file.rindex(b"OggS")]) < SECONDS + 0.01


@pytest.mark.parametrize("scale", [128, 2**15, 2**23, 2**31])
def test_floats_with_the_scale_of_integers_are_scaled_down_with_a_note(scale: int) -> None:
    sound = tone(SECONDS, SAMPLE_RATE)
    sound[SAMPLE_RATE // 2 : SAMPLE_RATE] = 0
    samples, (note,) = read(wav((sound * scale).astype("<f4").tobytes(), bits=32, form=3), MAX_S)
    assert np.abs(samples / np.abs(samples).max() - sound / np.abs(sound).max()).max() < 1e-3
    assert np.abs(samples).max() >= 32_766
    assert note.startswith("The samples of the file reach ")


def test_single_samples_beyond_full_scale_are_clipped_and_leave_the_rest_as_loud_as_it_is() -> None:
    sound = tone(SECONDS, SAMPLE_RATE)
    expected = decode(wav(sound.tobytes(), bits=32, form=3), MAX_S)
    sound[1000:1003] = 1e30, -1e30, 1.5
    samples, notes = read(wav(sound.tobytes(), bits=32, form=3), MAX_S)
    assert notes == []
    assert samples[1000:1003].tolist() == [32_767, -32_768, 32_767]
    assert np.array_equal(np.delete(samples, range(1000, 1003)), np.delete(expected, range(1000, 1003)))


def channels(*sounds: Any) -> bytes:
    return wav((np.stack(sounds, axis=1) * 32767).astype("<i2").tobytes(), channels=len(sounds))


@pytest.mark.parametrize("count", [1, 2, 3, 6, 8])
def test_equal_channels_are_mixed_to_the_sound_of_one(count: int) -> None:
    loud = 2.4 * tone(SECONDS, SAMPLE_RATE)
    mono = decode(channels(loud), MAX_S)
    assert np.abs(decode(channels(*[loud] * count), MAX_S).astype(int) - mono).max() <= 1


@pytest.mark.parametrize("others", [(-1.0,), (-0.85,), (-1.0, 0.0), (-0.5, -0.5), (-1.0, 1.0, -1.0)])
def test_channels_that_cancel_each_other_are_heard(others: tuple[float, ...]) -> None:
    sound = tone(SECONDS, SAMPLE_RATE)
    mixed = decode(channels(sound, *(factor * sound for factor in others)), MAX_S)
    assert np.abs(np.corrcoef(mixed, sound)[0, 1]) > 0.999
    assert np.abs(mixed).max() > 12_000


def test_channels_with_different_sounds_are_averaged() -> None:
    left, right = tone(SECONDS, SAMPLE_RATE), np.roll(tone(SECONDS, SAMPLE_RATE), 777)
    silent = np.zeros_like(left)
    mean = decode(channels(left, right), MAX_S) / 32768
    assert np.abs(mean - (left + right) / 2).max() < 1e-3
    assert np.abs(decode(channels(silent, right), MAX_S) / 32768 - right / 2).max() < 1e-3
