"""The task `generate` on the real model, without Ray."""

from __future__ import annotations

import asyncio
import io
import threading
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
import soundfile

from deployments.audio import generate as audio_generate
from deployments.audio.generate import SPEC, SpeechBackend, SpeechRequest
from deployments.audio.speech_engine import AudioPiece, SynthesisParams, split_text
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
    backend = audio_generate.load(LoadContext(configuration(), Device("cpu"), lambda progress: None))
    yield backend
    backend.close()


def library_voice(backend: SpeechBackend) -> Any:
    """The library without the engine."""
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


async def test_a_stream_has_numbered_chunks_progress_metrics_and_an_end(backend: SpeechBackend) -> None:
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


async def test_the_joined_chunks_equal_the_library_s_own_samples(backend: SpeechBackend) -> None:
    assert np.array_equal(joined(await events_of(backend, prompt=TEXT)), library_voice(backend)(TEXT, seed=7))


@pytest.mark.parametrize("prompt", [TEXT, LONG_SENTENCE])
@pytest.mark.parametrize("rate", [None, 16000, 44100])
async def test_the_signal_is_continuous_between_chunks(backend: SpeechBackend, prompt: str, rate: int | None) -> None:
    parts = chunks(await events_of(backend, prompt=prompt, sample_rate=rate))
    assert seams(parts)
    steps = jumps(np.concatenate(parts))
    loud = np.sort(steps)[-len(steps) // 1000]  # the boundaries are not among the largest thousandth of all steps
    assert sum(steps[seam - 1] > loud for seam in seams(parts)) == 0


async def test_a_long_first_sentence_is_split_after_a_clause_with_the_pause_of_a_comma(backend: SpeechBackend) -> None:
    split = synthesize(backend, LONG_SENTENCE, low_latency=True)
    whole = synthesize(backend, LONG_SENTENCE, low_latency=False)
    assert (len(split), len(whole)) == (2, 1)
    assert len(split[0].samples) < 0.6 * len(whole[0].samples)
    assert [piece.done for piece in split] == [0, 1]
    sound = np.concatenate([piece.samples for piece in split])
    seam = len(split[0].samples)
    silent = np.abs(sound) < 0.01
    pause = np.argmin(silent[seam:]) + np.argmin(silent[:seam][::-1])
    assert 0.2 < pause / RATE < 0.55
    assert np.abs(sound[seam - 24 : seam + 24]).max() < 1e-3
    assert abs(len(sound) - len(whole[0].samples)) < 0.1 * len(sound)


def synthesize(backend: SpeechBackend, prompt: str, *, low_latency: bool, speed: float = 1.0) -> list[AudioPiece]:
    params = SynthesisParams(prompt, None, speed, 7, 600, low_latency, lambda: False)
    return list(backend._engine.synthesize(params))


@pytest.mark.parametrize("duration", [0.05, 1.0, 3.21])
async def test_duration_limits_the_audio_exactly_and_without_a_click(backend: SpeechBackend, duration: float) -> None:
    events = await events_of(backend, prompt=TEXT, duration=duration)
    assert len(joined(events)) == round(duration * RATE)
    assert joined(events)[-1] == 0
    assert events[-1].stop_reason == "MAX_TOKENS"
    assert library_voice(backend)(TEXT, seed=7)[: round(duration * RATE) - 200] == pytest.approx(joined(events)[:-200])


def notes(events: list[Any]) -> list[str]:
    return [event.human for event in events if isinstance(event, Narration) and event.action == "note"]


CUT = "The audio has its maximum length, so the rest of the text is left out"


@pytest.mark.parametrize(("duration", "told"), [(0.5, [CUT]), (3.0, [CUT]), (60.0, [])])
async def test_a_text_that_is_cut_is_told_in_a_note(backend: SpeechBackend, duration: float, told: list[str]) -> None:
    assert notes(await events_of(backend, prompt=TEXT, duration=duration)) == told


async def test_a_sentence_that_the_voice_cannot_speak_is_told_in_a_note(backend: SpeechBackend) -> None:
    assert notes(await events_of(backend, prompt="Hello there. 你好 你好.\n\nAnd again.")) == [
        "1 of 3 sentences hold nothing that this voice can speak"
    ]
    assert notes(await events_of(backend, prompt="Hello there. 你好 你好")) == [
        "1 of 2 sentences hold nothing that this voice can speak"
    ]
    assert notes(await events_of(backend, prompt="Hello there. *** — And again.")) == []


class LoudEngine:
    """One sentence, three times as loud as full scale."""

    sample_rate = RATE
    voices: Sequence[str] = ()
    has_speed = False
    max_s: float | None = None

    def synthesize(self, params: SynthesisParams) -> Iterator[AudioPiece]:
        yield AudioPiece(np.linspace(-3, 3, 2400, dtype=np.float32), 1, 1)


async def test_samples_that_are_clipped_are_told_in_a_note() -> None:
    backend = SpeechBackend(LoudEngine(), EngineThread(Watchdog(20)), MemoryGauge(lambda: 1))
    events = await events_of(backend, prompt="a")
    assert notes(events) == ["1600 samples were louder than full scale and are clipped"]
    assert np.abs(joined(events)).max() == 1
    backend.close()


@pytest.mark.parametrize(
    ("typed", "plain"),
    [
        ("The pia\u00adnist played a so\u200bna\u2060ta.", "The pianist played a sonata."),
        (unicodedata.normalize("NFD", "The café has a jalapeño soufflé."), "The café has a jalapeño soufflé."),
        ("A green\ntractor crosses\r\nthe ﬁeld.", "A green tractor crosses the field."),
        ("It was 2½ miles.", "It was 2 1/2 miles."),
    ],
)
async def test_texts_that_look_the_same_give_the_same_audio(backend: SpeechBackend, typed: str, plain: str) -> None:
    assert np.array_equal(
        joined(await events_of(backend, prompt=typed)), joined(await events_of(backend, prompt=plain))
    )


async def test_a_blank_line_is_a_pause_and_a_line_break_is_none(backend: SpeechBackend) -> None:
    words = ["the quick brown fox", "jumps over the lazy dog"]
    lengths = [len(joined(await events_of(backend, prompt=gap.join(words)))) for gap in (" ", "\n", "\n\n")]
    assert lengths[0] == lengths[1] < 0.9 * lengths[2]


async def test_speed_changes_the_length(backend: SpeechBackend) -> None:
    lengths = [len(joined(await events_of(backend, prompt=TEXT, speed=speed))) for speed in (0.5, 1.0, 2.0)]
    assert lengths[0] > 1.5 * lengths[1] > 2.2 * lengths[2]


async def test_a_seed_repeats_the_audio_and_a_random_one_is_reported(backend: SpeechBackend) -> None:
    first = await events_of(backend, prompt="Hello there.", seed=None)
    assert first[-1].seed is not None
    again = await events_of(backend, prompt="Hello there.", seed=first[-1].seed)
    other = await events_of(backend, prompt="Hello there.", seed=first[-1].seed + 1)
    assert np.array_equal(joined(first), joined(again))
    assert not np.array_equal(joined(first), joined(other))


async def test_a_stream_defaults_to_numbers_and_a_single_result_to_a_file(backend: SpeechBackend) -> None:
    events = await events_of(backend, prompt="Hello.", format=None)
    assert {event.value.encoding for event in events if isinstance(event, Output)} == {None}
    assert np.array_equal(joined(events), library_voice(backend)("Hello.", seed=7))
    assert parse_object(SpeechRequest, {"prompt": "a", "stream": False}).as_file == "wav"
    assert parse_object(SpeechRequest, {"prompt": "a", "stream": False, "format": "f32"}).as_file is None


@pytest.mark.parametrize(("form", "error"), [("wav", 1e-4), ("flac", 1e-4), ("ogg", 0.2), ("mp3", 0.2)])
async def test_a_file_decodes_to_the_same_audio(backend: SpeechBackend, form: str, error: float) -> None:
    fields = {"prompt": TEXT, "format": form, "stream": False, "seed": 7, "sample_rate": 16000}
    request = parse_object(SpeechRequest, fields)
    result = await collect(ordered(Started.now("j", "m"), backend.execute(request)), SPEC.outputs)
    encoded = audio_generate.encode_result(request, result)
    assert encoded is not None
    assert encoded.media_type.startswith("audio/")
    sound, rate = soundfile.read(io.BytesIO(encoded.data), dtype="float32")
    assert rate == 16000
    assert np.abs(sound - joined(await events_of(backend, prompt=TEXT, sample_rate=16000))).max() < error


async def test_samples_in_a_single_result_are_json(backend: SpeechBackend) -> None:
    request = SpeechRequest(prompt="Hello.", format="pcm_s16le", stream=False)
    result = await collect(ordered(Started.now("j", "m"), backend.execute(request)), SPEC.outputs)
    assert audio_generate.encode_result(request, result) is None
    assert result.output["sample_rate"] == RATE
    assert len(result.output["samples"]) == 2 * round(result.metrics["audio_seconds"] * RATE)
    assert b'"samples":"' in result.to_json()


async def test_a_cancellation_stops_the_engine_after_the_current_sentence() -> None:
    engine = SlowEngine()
    backend = SpeechBackend(engine, EngineThread(Watchdog(20)), MemoryGauge(lambda: 1))
    async with aclosing(backend.execute(SpeechRequest(prompt="a"))) as events:
        while not isinstance(await anext(events), Output):
            pass
    assert await asyncio.to_thread(engine.closed.wait, 1)
    assert engine.started <= 2
    backend.close()


class SlowEngine:
    """Generates endless audio in real time, a tenth of a second per piece."""

    sample_rate = RATE
    voices: Sequence[str] = ("one", "two")
    has_speed = False
    max_s: float | None = None

    def __init__(self) -> None:
        self.started = 0
        self.closed = threading.Event()

    def synthesize(self, params: SynthesisParams) -> Iterator[AudioPiece]:
        try:
            while True:
                self.started += 1
                time.sleep(0.1)
                yield AudioPiece(np.full(2400, 0.1, np.float32), self.started, 1000)
        finally:
            self.closed.set()


async def test_a_cancellation_stops_the_real_engine(backend: SpeechBackend) -> None:
    async with aclosing(backend.execute(SpeechRequest(prompt="Wait for it. " * 1000))) as events:
        while not isinstance(await anext(events), Output):
            pass
    started_at = time.monotonic()
    await events_of(backend, prompt="Next.")
    assert time.monotonic() - started_at < 2


async def test_a_short_request_does_not_wait_for_a_long_one(backend: SpeechBackend) -> None:
    async with aclosing(backend.execute(SpeechRequest(prompt="Wait for it. " * 1000))) as events:
        while not isinstance(await anext(events), Output):
            pass
        assert chunks(await events_of(backend, prompt="Next."))


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"voice": "emma"}, "voice", "unknown voice; known are heart"),
        ({"prompt": "!!! … ???"}, "prompt", "nothing to speak"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": "a" * 32769}, "prompt", "at most 32768"),
        ({"prompt": "你好"}, "prompt", "holds nothing that this voice can speak"),
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
async def test_an_invalid_request_names_the_field(
    backend: SpeechBackend, fields: Any, field: str, message: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await events_of(backend, **{"prompt": "Hello.", **fields})
    assert [violation.field for violation in caught.value.violations] == [field]
    assert message in caught.value.message


async def test_an_unsupported_speed_or_voice_is_refused() -> None:
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
async def test_a_hostile_text_takes_bounded_time_per_step(backend: SpeechBackend, prompt: str) -> None:
    started_at = time.monotonic()
    await events_of(backend, prompt=prompt[:32767] + "a", duration=1.0)
    assert time.monotonic() - started_at < 15


def test_a_text_is_split_after_a_clause_else_a_word_else_anywhere() -> None:
    assert list(split_text("one, two three", 9)) == ["one,", "two three"]
    assert list(split_text("one two three", 9)) == ["one two", "three"]
    assert list(split_text("abcdefghij", 4)) == ["abcd", "efgh", "ij"]
    assert list(split_text("", 4)) == []
    for text in ("a, b; c " * 50, " x" * 40, "— " * 30):
        parts = list(split_text(text, 7))
        assert all(0 < len(part) <= 7 for part in parts)
        assert "".join(parts).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": {"name": "festival"}}, r"engine.name: 'festival' is unknown; known are hibari, transformers"),
        ({"engine": {"voices": ["nobody"]}}, r"engine.voices: hibari has no voice 'nobody'; it has heart, emma"),
        ({"engine": {"voice": "heart"}}, r"engine.voice: unknown key"),
        ({"engine": {"voices": []}}, r"engine.voices: "),
        ({"model_ref": "pkg:hibari/assets"}, r"model_ref: the engine hibari brings its own models"),
        ({"engine": {"name": "transformers"}}, r"model_ref: is missing"),
        ({"engine": {"name": "transformers"}, "model_ref": "file:/nowhere"}, r"model_ref: .* does not exist"),
    ],
)
def test_check_refuses_an_invalid_configuration(options: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        audio_generate.check(configuration(**options))
