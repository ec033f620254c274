"""Audio decoding: supported files, and the errors of the others."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np
import pytest

from deployments.media.audio_decoder import AudioDecoder
from deployments.media.audio_files import SAMPLE_RATE, decode
from rbee_serve.errors import InvalidRequest
from tests.audio.sounds import CODECS, encoded, tone, wav

MAX_S = 60.0
SILENCE = bytes(2 * SAMPLE_RATE)


@pytest.fixture(scope="module")
def decoder() -> Iterator[AudioDecoder]:
    decoder = AudioDecoder(MAX_S)
    yield decoder
    decoder.close()


def refusal(data: bytes, max_s: float = MAX_S) -> tuple[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        decode(data, max_s)
    (violation,) = caught.value.violations
    assert violation.field == "audio"
    return violation.constraint, violation.message


@pytest.mark.parametrize("name", CODECS)
def test_every_format_decodes_to_the_same_samples(name: str, decoder: AudioDecoder) -> None:
    samples = decoder.decode(encoded(name, seconds=2))
    assert samples.dtype == np.float32
    assert abs(len(samples) - 2 * SAMPLE_RATE) <= 0.01 * SAMPLE_RATE
    count = min(len(samples), 2 * SAMPLE_RATE) - 1600
    expected = tone(2, SAMPLE_RATE)
    best = max(np.corrcoef(samples[lag : lag + count], expected[:count])[0, 1] for lag in range(800))
    assert best > 0.99


@pytest.mark.parametrize("rate", [1000, 8000, 11_025, 22_050, 44_100, 96_000, 192_000, 384_000])
@pytest.mark.parametrize("channels", [1, 2, 3, 6, 7, 8])
def test_every_rate_and_channel_count_is_resampled_to_16_khz_mono(rate: int, channels: int) -> None:
    sound = (np.repeat(tone(0.5, rate), channels) * 32767).astype(np.int16)
    samples = decode(wav(sound.tobytes(), rate, channels), MAX_S)
    assert abs(len(samples) - SAMPLE_RATE // 2) <= 4
    assert samples.dtype == np.int16
    assert np.abs(samples).max() > 10_000


@pytest.mark.parametrize(("bits", "form"), [(8, 1), (24, 1), (32, 1), (32, 3), (64, 3), (8, 6), (8, 7)])
def test_wav_may_have_any_sample_width(bits: int, form: int) -> None:
    assert len(decode(wav(bytes(SAMPLE_RATE * bits // 8), bits=bits, form=form), MAX_S)) == SAMPLE_RATE


@pytest.mark.parametrize(
    "data", [b"\0", b"RIFF", b"<html>", b"\x1aE\xdf\xa3webm", b"....ftypM4A ", b"RIFF\0\0\0\0AVI "]
)
def test_other_formats_are_refused_by_their_first_bytes(data: bytes) -> None:
    assert refusal(data) == ("format", "is not a WAV, FLAC, OGG, MP3, AIFF or AU file; send one of these")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_non_finite_samples_are_refused(bad: float, rate: int) -> None:
    sound = np.zeros(rate, np.float32)
    sound[rate // 2] = bad
    assert refusal(wav(sound.tobytes(), rate, bits=32, form=3))[0] == "finite"


@pytest.mark.parametrize(
    ("data", "constraint"),
    [
        (wav(b""), "sound"),
        (b".snd" + bytes(20), "readable"),
        (b"FORM\0\0\0\4AIFF", "readable"),
        (b"RF64\xff\xff\xff\xffWAVEds64\0\0\0\x1c" + bytes(28), "readable"),
        (wav(SILENCE, rate=0), "readable"),
        (wav(SILENCE, rate=999), "sample rate"),
        (wav(SILENCE, rate=384_001), "sample rate"),
        (wav(SILENCE, rate=2**32 - 1), "readable"),
        (wav(SILENCE, channels=0), "channels"),
        (wav(SILENCE, channels=9), "channels"),
        (wav(SILENCE, channels=65_535), "channels"),
        (wav(SILENCE, form=2, bits=4), "codec"),
        (wav(SILENCE, form=0x55), "codec"),
        (wav(SILENCE)[:40], "readable"),
        (b"fLaC", "readable"),
        (b"OggS", "readable"),
        (b"ID3" + bytes(100), "readable"),
        (b"\xff\xfb" * 100, "readable"),
    ],
)  # fmt: skip
def test_a_file_with_an_invalid_header_is_refused(data: bytes, constraint: str) -> None:
    assert refusal(data)[0] == constraint


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("part", [0.3, 0.5, 0.9])
def test_a_truncated_file_is_refused(name: str, part: float) -> None:
    whole = encoded(name, seconds=4)
    assert refusal(whole[: int(len(whole) * part)])[0] in ("whole", "readable")


@pytest.mark.parametrize("name", CODECS)
def test_a_long_file_is_refused_at_the_limit(name: str) -> None:
    constraint, message = refusal(encoded(name, seconds=5), max_s=2)
    assert (constraint, message) == ("seconds <= 2", "must be at most 2 seconds long; send it in parts")


def test_decoding_of_a_small_file_with_much_sound_stops_at_the_limit() -> None:
    silence = np.zeros(48_000 * 100, np.float32)
    small = encoded("opus", silence)
    assert len(small) < 25_000
    # A header with a too short duration: the last page's position is set to one second.
    understated = bytearray(small)
    last = small.rfind(b"OggS")
    understated[last + 6 : last + 14] = (48_000).to_bytes(8, "little")
    started_at = time.monotonic()
    for data in (small, bytes(understated)):
        assert refusal(data, max_s=3)[0] in ("seconds <= 3", "readable")
    assert time.monotonic() - started_at < 3


def test_images_in_an_audio_file_are_ignored() -> None:
    sound = encoded("mp3")
    image = b"\0image/png\0\x03\0" + b"\x89PNG\r\n\x1a\n" + os.urandom(200)
    frame = b"APIC" + len(image).to_bytes(4, "big") + b"\0\0" + image
    size = len(frame)
    head = b"ID3\x03\0\0" + bytes([size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127])
    assert abs(len(decode(head + frame + sound, MAX_S)) - SAMPLE_RATE) < 1000
