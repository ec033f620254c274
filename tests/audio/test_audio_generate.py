"""The task `generate` on the real model, without Ray."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
import soundfile

from deployments.audio import generate as audio_generate
from deployments.audio.generate import SPEC, SpeechBackend, SpeechRequest
from deployments.audio.speech_engine import AudioPiece, SynthesisParams, cut
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError, InvalidRequest
from rbee_serve.events import End, Metrics, Narration, Output, Progress, Started
from rbee_serve.replica.event_stream import ordered
from rbee_serve.result import collect
from rbee_serve.validation.parse import parse_object
from rbee_serve.worker.engine_thread import EngineThread
from rbee_serve.worker.memory import MemoryGauge
from rbee_serve.worker.spec import Device, LoadContext
from rbee_serve.worker.watchdog import Watchdog

RATE = 24000
TEXT = "The quick brown fox jumps over the lazy dog. She sells sea shells by the shore! Is it half past seven yet?"
LONG_SENTENCE = (
    "When the committee had finally finished reading the report, which ran to more than three hundred pages, the "
    "chairman stood up, thanked everybody for their patience, and proposed that they meet again on Thursday; nobody "
    "objected, although a few of them, as we later learned, had hoped for an earlier date."
)


def configuration(**options: Any) -> WorkerConfig:
    return WorkerConfig(id="speech-0", type="audio", task="generate", **options)


@pytest.fixture(scope="module")
def backend() -> Iterator[SpeechBackend]:
    made = audio_generate.load(LoadContext(configuration(), Device("cpu"), lambda progress: None))
    yield made
    made.close()


def voice_of(backend: SpeechBackend) -> Any:
    """The bare library."""
    return backend._engine._voices["heart"]  # type: ignore[attr-defined]


async def events_of(backend: SpeechBackend, **fields: Any) -> list[Any]:
    request = parse_object(SpeechRequest, {"format": "f32le", "seed": 7, **fields})
    return [event async for event in backend.execute(request)]


def chunks(events: list[Any]) -> list[Any]:
    return [np.frombuffer(event.value.samples, "<f4") for event in events if isinstance(event, Output)]


def joined(events: list[Any]) -> Any:
    return np.concatenate(chunks(events))


def jumps(sound: Any) -> Any:
    return np.abs(np.diff(sound))


def seams(parts: list[Any]) -> list[int]:
    return [int(end) for end in np.cumsum([len(part) for part in parts])[:-1]]


async def test_events_come_in_order_with_their_numbers(backend: SpeechBackend) -> None:
    events = await events_of(backend, prompt=TEXT)
    assert isinstance(events[0], Narration)
    assert [event.value.i for event in events if isinstance(event, Output)] == list(range(len(chunks(events))))
    assert [event for event in events if isinstance(event, Progress)] == [Progress(step=n, total=3) for n in (1, 2, 3)]
    assert all(event.value.sample_rate == RATE for event in events if isinstance(event, Output))
    metrics, end = events[-2:]
    assert isinstance(metrics, Metrics)
    assert isinstance(end, End)
    assert metrics.values["audio_seconds"] == pytest.approx(len(joined(events)) / RATE, abs=1e-3)
    assert {"real_time_factor", "time_to_first_audio_ms", "vram_bytes"} < set(metrics.values)
    assert (end.tokens_out, end.stop_reason, end.seed) == (len(chunks(events)), "COMPLETE", 7)


async def test_the_joined_chunks_are_the_library_s_own_sound(backend: SpeechBackend) -> None:
    assert np.array_equal(joined(await events_of(backend, prompt=TEXT)), voice_of(backend)(TEXT, seed=7))


@pytest.mark.parametrize("prompt", [TEXT, LONG_SENTENCE])
@pytest.mark.parametrize("rate", [None, 16000, 44100])
async def test_the_sound_is_continuous_where_chunks_meet(backend: SpeechBackend, prompt: str, rate: int | None) -> None:
    parts = chunks(await events_of(backend, prompt=prompt, sample_rate=rate))
    assert seams(parts)
    steps = jumps(np.concatenate(parts))
    loud = np.sort(steps)[-len(steps) // 1000]  # the joins are nowhere near the thousandth that jumps most
    assert sum(steps[seam - 1] > loud for seam in seams(parts)) == 0


async def test_a_long_first_sentence_is_cut_after_a_clause_and_paused_like_a_comma(backend: SpeechBackend) -> None:
    hurried = [AudioPiece(*piece) for piece in speak(backend, LONG_SENTENCE, low_latency=True)]
    whole = [AudioPiece(*piece) for piece in speak(backend, LONG_SENTENCE, low_latency=False)]
    assert (len(hurried), len(whole)) == (2, 1)
    assert len(hurried[0].samples) < 0.6 * len(whole[0].samples)
    assert [piece.done for piece in hurried] == [0, 1]
    sound = np.concatenate([piece.samples for piece in hurried])
    seam = len(hurried[0].samples)
    silent = np.abs(sound) < 0.01
    pause = np.argmin(silent[seam:]) + np.argmin(silent[:seam][::-1])
    assert 0.2 < pause / RATE < 0.55
    assert np.abs(sound[seam - 24 : seam + 24]).max() < 1e-3
    assert abs(len(sound) - len(whole[0].samples)) < 0.1 * len(sound)


def speak(backend: SpeechBackend, prompt: str, *, low_latency: bool, speed: float = 1.0) -> list[AudioPiece]:
    order = SynthesisParams(prompt, None, speed, 7, 600, low_latency, lambda: False)
    return list(backend._engine.speak(order))


@pytest.mark.parametrize("duration", [0.05, 1.0, 3.21])
async def test_duration_caps_the_sound_exactly_and_without_a_click(backend: SpeechBackend, duration: float) -> None:
    events = await events_of(backend, prompt=TEXT, duration=duration)
    assert len(joined(events)) == round(duration * RATE)
    assert joined(events)[-1] == 0
    assert events[-1].stop_reason == "MAX_TOKENS"
    assert voice_of(backend)(TEXT, seed=7)[: round(duration * RATE) - 200] == pytest.approx(joined(events)[:-200])


async def test_speed_changes_the_length(backend: SpeechBackend) -> None:
    lengths = [len(joined(await events_of(backend, prompt=TEXT, speed=speed))) for speed in (0.5, 1.0, 2.0)]
    assert lengths[0] > 1.5 * lengths[1] > 2.2 * lengths[2]


async def test_a_seed_repeats_the_sound_and_one_that_was_made_up_is_told(backend: SpeechBackend) -> None:
    first = await events_of(backend, prompt="Hello there.", seed=None)
    assert first[-1].seed is not None
    again = await events_of(backend, prompt="Hello there.", seed=first[-1].seed)
    other = await events_of(backend, prompt="Hello there.", seed=first[-1].seed + 1)
    assert np.array_equal(joined(first), joined(again))
    assert not np.array_equal(joined(first), joined(other))


async def test_numbers_are_the_default_of_a_stream_and_a_file_that_of_one_result(backend: SpeechBackend) -> None:
    events = await events_of(backend, prompt="Hello.", format=None)
    assert {event.value.encoding for event in events if isinstance(event, Output)} == {None}
    assert np.array_equal(joined(events), voice_of(backend)("Hello.", seed=7))
    assert parse_object(SpeechRequest, {"prompt": "a", "stream": False}).as_file == "wav"
    assert parse_object(SpeechRequest, {"prompt": "a", "stream": False, "format": "f32"}).as_file is None


@pytest.mark.parametrize(("form", "error"), [("wav", 1e-4), ("flac", 1e-4), ("ogg", 0.2), ("mp3", 0.2)])
async def test_a_file_decodes_to_the_sound(backend: SpeechBackend, form: str, error: float) -> None:
    fields = {"prompt": TEXT, "format": form, "stream": False, "seed": 7, "sample_rate": 16000}
    request = parse_object(SpeechRequest, fields)
    result = await collect(ordered(Started.now("j", "m"), backend.execute(request)), SPEC.outputs)
    encode_result = audio_generate.encode_result(request, result)
    assert encode_result is not None
    assert encode_result.media_type.startswith("audio/")
    sound, rate = soundfile.read(io.BytesIO(encode_result.data), dtype="float32")
    assert rate == 16000
    assert np.abs(sound - joined(await events_of(backend, prompt=TEXT, sample_rate=16000))).max() < error


async def test_samples_in_one_result_are_json(backend: SpeechBackend) -> None:
    request = SpeechRequest(prompt="Hello.", format="pcm_s16le", stream=False)
    result = await collect(ordered(Started.now("j", "m"), backend.execute(request)), SPEC.outputs)
    assert audio_generate.encode_result(request, result) is None
    assert result.output["sample_rate"] == RATE
    assert len(result.output["samples"]) == 2 * round(result.metrics["audio_seconds"] * RATE)
    assert b'"samples":"' in result.to_json()


async def test_a_client_that_leaves_stops_the_work_after_the_sentence_at_hand() -> None:
    pieces = SlowEngine()
    backend = SpeechBackend(pieces, EngineThread(Watchdog(20)), MemoryGauge(lambda: 1))
    async with aclosing(backend.execute(SpeechRequest(prompt="a"))) as events:
        while not isinstance(await anext(events), Output):
            pass
    assert await asyncio.to_thread(pieces.closed.wait, 1)
    assert pieces.begun <= 2
    backend.close()


class SlowEngine:
    """Makes a tenth of a second of sound in a tenth of a second, without an end."""

    sample_rate = RATE
    voices: Sequence[str] = ("one", "two")
    has_speed = False

    def __init__(self) -> None:
        self.begun = 0
        self.closed = threading.Event()

    def speak(self, order: SynthesisParams) -> Iterator[AudioPiece]:
        try:
            while True:
                self.begun += 1
                time.sleep(0.1)
                yield AudioPiece(np.full(2400, 0.1, np.float32), self.begun, 1000)
        finally:
            self.closed.set()


async def test_the_real_engine_stops_too(backend: SpeechBackend) -> None:
    async with aclosing(backend.execute(SpeechRequest(prompt="Wait for it. " * 1000))) as events:
        while not isinstance(await anext(events), Output):
            pass
    began = time.monotonic()
    await events_of(backend, prompt="Next.")
    assert time.monotonic() - began < 2


async def test_a_short_request_does_not_wait_for_a_long_one(backend: SpeechBackend) -> None:
    async with aclosing(backend.execute(SpeechRequest(prompt="Wait for it. " * 1000))) as events:
        while not isinstance(await anext(events), Output):
            pass
        assert chunks(await events_of(backend, prompt="Next."))


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"voice": "emma"}, "voice", "no such voice; known are heart"),
        ({"prompt": "!!! … ???"}, "prompt", "nothing to say"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": "a" * 32769}, "prompt", "at most 32768"),
        ({"prompt": "你好"}, "prompt", "holds nothing that this voice can say"),
        ({"speed": 0.2}, "speed", "at least 0.25"),
        ({"duration": 0}, "duration", "more than 0"),
        ({"duration": 601}, "duration", "at most 600"),
        ({"sample_rate": 7999}, "sample_rate", "at least 8000"),
        ({"format": "wav"}, "format", "wav is a file, which needs stream to be false"),
        ({"format": "aac"}, "format", "must be one of"),
        ({"format": "mp3", "stream": False, "sample_rate": 23999}, "sample_rate", "an mp3 has one of the rates 8000"),
        ({"seed": 2**64}, "seed", "at most"),
        ({"temperature": 1}, "temperature", "not a field"),
    ],
)
async def test_what_is_wrong_is_told_by_field(backend: SpeechBackend, fields: Any, field: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await events_of(backend, **{"prompt": "Hello.", **fields})
    assert [violation.field for violation in caught.value.violations] == [field]
    assert message in caught.value.message


async def test_an_engine_without_speeds_or_voices_says_so() -> None:
    backend = SpeechBackend(SlowEngine(), EngineThread(Watchdog(20)), MemoryGauge(lambda: 1))
    with pytest.raises(InvalidRequest, match="one speed"):
        await events_of(backend, prompt="a", speed=2.0)
    with pytest.raises(InvalidRequest, match="known are one, two"):
        await events_of(backend, prompt="a", voice="three")


@pytest.mark.parametrize(
    "prompt",
    ["a-b" * 5000, "x9" * 8000, "1/2" * 5000, "9" * 3000, "1," * 2000, ". - " * 4000, ".-.-.- " * 2000, "x." * 9000,
     "🐝" * 5000, "<|endoftext|>" * 500, "[a](/" + "b" * 5000 + "/)", "A" * 20000, "word " * 6000, "a\n" * 3000,
     "aB" * 9000, "é-" * 9000, "你-好-" * 500 + " a"],
)  # fmt: skip
async def test_hostile_texts_take_a_bounded_time_for_each_step(backend: SpeechBackend, prompt: str) -> None:
    began = time.monotonic()
    await events_of(backend, prompt=prompt[:32767] + "a", duration=1.0)
    assert time.monotonic() - began < 15


def test_a_text_is_cut_after_a_clause_else_a_word_else_anywhere() -> None:
    assert list(cut("one, two three", 9)) == ["one,", "two three"]
    assert list(cut("one two three", 9)) == ["one two", "three"]
    assert list(cut("abcdefghij", 4)) == ["abcd", "efgh", "ij"]
    assert list(cut("", 4)) == []
    for text in ("a, b; c " * 50, " x" * 40, "— " * 30):
        parts = list(cut(text, 7))
        assert all(0 < len(part) <= 7 for part in parts)
        assert "".join(parts).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": {"name": "festival"}}, r"engine.name: 'festival' is none of hibari, transformers"),
        ({"engine": {"voices": ["nobody"]}}, r"engine.voices: hibari has no voice 'nobody'; it has heart, emma"),
        ({"engine": {"voice": "heart"}}, r"engine.voice: unknown key"),
        ({"engine": {"voices": []}}, r"engine.voices: "),
        ({"model_ref": "pkg:hibari/assets"}, r"model_ref: the engine hibari brings its own models"),
        ({"engine": {"name": "transformers"}}, r"model_ref: is missing"),
        ({"engine": {"name": "transformers"}, "model_ref": "file:/nowhere"}, r"model_ref: .* does not exist"),
    ],
)
def test_a_wrong_configuration_is_told_before_anything_starts(options: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        audio_generate.check(configuration(**options))
