"""Samples as numbers, bytes and files, and one signal from many pieces."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import msgspec
import numpy as np
import pytest
import soundfile
import soxr

from deployments.audio.encoding import MP3_RATES, SampleFormat, Signal, encode_file, faded, media_type
from deployments.audio.generate import audio_chunk
from rbee_serve.events import Output, from_json, to_json
from rbee_serve.outputs import AudioChunkOutput

RATE = 24000


def tone(seconds: float, rate: int = RATE) -> Any:
    """Speech-like: two amplitude-modulated partials."""
    t = np.arange(round(seconds * rate)) / rate
    sound = (0.4 * np.sin(2 * np.pi * 220 * t) + 0.2 * np.sin(2 * np.pi * 660 * t)) * np.sin(2 * np.pi * 0.7 * t)
    return sound.astype(np.float32)


def processed(signal: Signal, pieces: list[Any]) -> Any:
    parts = [part for piece in pieces for part in signal.feed(piece)] + list(signal.flush())
    return np.concatenate(parts)


def test_numbers_in_json_are_short_and_more_precise_than_16_bits() -> None:
    sound = np.concatenate([tone(1), np.array([0, 1, -1, -1e-9], np.float32)])
    encoded = to_json(Output(audio_chunk(sound, RATE, "f32", 3)))
    assert len(encoded) < 9.1 * len(sound)
    fields = msgspec.json.decode(encoded)
    assert (list(fields), fields["i"]) == (["type", "samples", "sample_rate", "i"], 3)
    assert np.abs(np.array(fields["samples"]) - sound).max() <= 0.51e-5
    event = from_json(encoded, AudioChunkOutput)
    assert isinstance(event, Output)
    assert event.value.samples == fields["samples"]
    assert to_json(event) == encoded


@pytest.mark.parametrize(("form", "dtype", "scale"), [("f32le", "<f4", 1), ("pcm_s16le", "<i2", 32767)])
def test_bytes_are_sent_as_base64_and_decoded_by_the_client(form: Any, dtype: str, scale: int) -> None:
    sound = tone(0.5)
    encoded = to_json(Output(audio_chunk(sound, RATE, form, 0)))
    assert msgspec.json.decode(encoded)["encoding"] == form
    event = from_json(encoded, AudioChunkOutput)
    assert isinstance(event, Output)
    decoded = np.frombuffer(event.value.samples, dtype) / scale
    assert np.abs(decoded - sound).max() <= (0 if scale == 1 else 0.5 / scale + 1e-7)


def test_chunks_join_to_one_signal_in_the_same_format() -> None:
    sound = tone(0.2)
    forms: tuple[SampleFormat, ...] = ("f32", "f32le", "pcm_s16le")
    for form in forms:
        values = [audio_chunk(part, RATE, form, i) for i, part in enumerate(np.array_split(sound, 3))]
        whole = msgspec.json.decode(to_json(Output(audio_chunk(sound, RATE, form, 0))))
        joined = msgspec.json.decode(msgspec.json.encode(AudioChunkOutput.join(values)))
        assert {"type": "audio", **joined, "i": 0} == whole
    assert AudioChunkOutput.join([]) == {"samples": []}


def test_a_signal_is_split_into_chunks_of_a_second_without_loss() -> None:
    pieces = [tone(2.5), tone(0.3), tone(1.0)]
    signal = Signal(RATE, RATE, 600)
    assert [len(part) for part in signal.feed(pieces[0])] == [24000, 24000, 12000]
    assert np.array_equal(processed(Signal(RATE, RATE, 600), pieces), np.concatenate(pieces))


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_a_resampled_signal_is_continuous(rate: int) -> None:
    sound = tone(3)
    resampled = processed(Signal(RATE, rate, 600), np.array_split(sound, 7))
    assert np.abs(resampled - soxr.resample(sound, RATE, rate)).max() < 1e-5
    assert len(resampled) == 3 * rate


@pytest.mark.parametrize("rate", [RATE, 16000])
@pytest.mark.parametrize("max_s", [0.0101, 1.0, 2.34567])
def test_the_signal_fades_out_exactly_at_its_maximum_length(rate: int, max_s: float) -> None:
    signal = Signal(RATE, rate, max_s)
    sound = processed(signal, [tone(1.3)] * 3)
    assert len(sound) == signal.samples == round(max_s * rate)
    assert signal.full
    assert sound[-1] == 0


def test_non_finite_and_too_loud_samples_are_replaced() -> None:
    invalid = np.array([np.nan, np.inf, -np.inf, 3, -3, 0.5], np.float32)
    assert processed(Signal(RATE, RATE, 1), [invalid]).tolist() == [0, 0, 0, 1, -1, 0.5]


def test_a_faded_piece_starts_and_ends_at_zero_and_is_a_copy() -> None:
    constant = np.ones(1000, np.float32)
    result = faded(constant, RATE)
    assert result[0] == result[-1] == 0
    assert result[500] == constant[0] == 1
    assert faded(constant[:1], RATE).tolist() == [0]


@pytest.mark.parametrize(
    ("form", "kind", "error"), [("wav", "audio/wav", 1e-4), ("flac", "audio/flac", 1e-4), ("ogg", "audio/ogg", 0.1),
                                ("mp3", "audio/mpeg", 0.1)]
)  # fmt: skip
def test_a_file_decodes_to_the_same_signal(form: Any, kind: str, error: float) -> None:
    sound = tone(4)
    data = encode_file((part.tobytes() for part in np.array_split(sound, 5)), RATE, form)
    decoded, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert (rate, len(decoded), media_type(form)) == (RATE, len(sound), kind)
    assert np.abs(decoded - sound).max() < error


def test_every_mp3_rate_can_be_encoded() -> None:
    for rate in MP3_RATES:
        data = encode_file([tone(0.5, rate).tobytes()], rate, "mp3")
        assert soundfile.read(io.BytesIO(data))[1] == rate


def test_ten_minutes_of_ogg_in_one_piece_are_encoded_in_blocks() -> None:
    # In a separate process: without blocks it crashes.
    program = """
import numpy, resource
from deployments.audio.encoding import encode_file
sound = (0.1 * numpy.random.default_rng(0).standard_normal(60 * 24000)).astype("<f4").tobytes()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(encode_file([sound] * 10, 24000, "ogg")), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    size, grown_kb = map(int, done.stdout.split())
    assert size > 1_000_000
    assert grown_kb < 40_000, "memory beside the file itself"
