"""The engine `transformers` with the weights of the default model gives the same text."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.audio import TranscribeRequest
from deployments.audio.transcribe import TranscribeBackend, check, load
from deployments.media.audio_files import SAMPLE_RATE
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError, InvalidRequest
from rbee_serve.events import End, Narration, Output
from rbee_serve.outputs import RecordingOutput
from rbee_serve.worker.spec import LoadContext
from rbee_serve.worker.watchdog import Watchdog
from tests.audio.speech import WORDS, as_wav, long_speech, speech, speech_file, words_of
from tests.audio.test_transcribe import events_of, segments, text
from tests.audio.whisper_for_transformers import packaged_whisper, random_whisper
from tests.devices import DEVICE

pytestmark = pytest.mark.model


def backend_of(folder: Path, **engine: Any) -> TranscribeBackend:
    worker = WorkerConfig(id="a", type="audio", model_ref=f"file:{folder}", engine={"name": "transformers", **engine})
    check(worker)
    return load(LoadContext(worker, DEVICE, lambda progress: None, Watchdog(20)))


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TranscribeBackend]:
    backend = backend_of(packaged_whisper(tmp_path_factory.mktemp("tiny.en")))
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TranscribeBackend]:
    backend = backend_of(random_whisper(tmp_path_factory.mktemp("random")), num_beams=1)
    yield backend
    backend.close()


async def test_speech_is_transcribed_word_for_word(english: TranscribeBackend) -> None:
    events = await events_of(english, speech_file())
    assert text(events) == WORDS
    assert segments(events)[-1].end <= len(speech()) / SAMPLE_RATE


async def test_each_word_has_a_timestamp_on_request(english: TranscribeBackend) -> None:
    found = segments(await events_of(english, speech_file(), timestamps="word", temperature=0.0))
    words = [word for segment in found for word in segment.words]
    assert [words_of(word.t)[0] for word in words] == WORDS
    assert [word.start for word in words] == sorted(word.start for word in words)
    assert words[WORDS.index("river")].end < words[WORDS.index("apple")].start


async def test_no_words_are_lost_between_the_windows_of_a_long_file(english: TranscribeBackend) -> None:
    events = await events_of(english, long_speech(40), temperature=0.0)
    found = segments(events)
    assert [segment.i for segment in found] == list(range(len(found)))
    assert all(one.end <= other.start for one, other in pairwise(found))
    expected = 40 / (len(speech()) / SAMPLE_RATE + 0.5) * len(WORDS)
    assert abs(len(text(events)) - expected) < 6


async def test_the_vad_filter_keeps_timestamps_of_the_whole_recording(english: TranscribeBackend) -> None:
    quiet = np.zeros(SAMPLE_RATE * 20, np.float32)
    found = segments(await events_of(english, as_wav(np.concatenate([quiet, speech()])), vad_filter=True))
    assert words_of("".join(segment.t for segment in found)) == WORDS
    assert 19 < found[0].start < 21.5
    silent = await events_of(english, as_wav(quiet), vad_filter=True)
    assert (text(silent), type(silent[-1])) == ([], End)


@pytest.mark.parametrize("seconds", [0.9, 3.1])
@pytest.mark.parametrize("fields", [{}, {"vad_filter": True}, {"timestamps": "word"}])
async def test_no_time_exceeds_a_recording_that_ends_within_a_sentence(
    english: TranscribeBackend, seconds: float, fields: Any
) -> None:
    sound = as_wav(speech()[: int(seconds * SAMPLE_RATE)])
    found = segments(await events_of(english, sound, temperature=0.0, **fields))
    assert all(0 <= segment.start <= segment.end <= seconds for segment in found)
    assert all(word.end <= seconds for segment in found for word in segment.words)


async def test_digital_silence_around_speech_adds_no_text_and_keeps_the_times(english: TranscribeBackend) -> None:
    assert text(await events_of(english, as_wav(np.zeros(SAMPLE_RATE * 31, np.float32)))) == []
    quiet = np.zeros(SAMPLE_RATE * 65, np.float32)
    found = segments(await events_of(english, as_wav(np.concatenate([quiet, speech(), quiet])), temperature=0.0))
    assert words_of("".join(segment.t for segment in found)) == WORDS
    assert 64 <= found[0].start < 66.5


async def test_a_long_prompt_is_truncated_with_a_note(english: TranscribeBackend) -> None:
    events = await events_of(english, speech_file(), prompt="river " * 600, temperature=0.0)
    assert WORDS[-1] in text(events)
    (note,) = (event.human for event in events if isinstance(event, Narration) and event.action == "note")
    assert note == "The prompt has 600 tokens; only the last 223 are read"


async def test_the_language_is_detected_or_given(multilingual: TranscribeBackend) -> None:
    for fields in ({"temperature": 0.0}, {"language": "fr", "translate": True, "temperature": 0.3}):
        events = await events_of(multilingual, speech_file(), **fields)
        recording = next(e.value for e in events if isinstance(e, Output) and isinstance(e.value, RecordingOutput))
        assert recording.language == fields.get("language", recording.language)
        assert recording.language in ("en", "de", "fr")
        assert isinstance(events[-1], End)


@pytest.mark.parametrize(
    ("fields", "field"), [({"language": "it"}, "language"), ({"timestamps": "word"}, "timestamps")]
)
async def test_an_unsupported_feature_is_refused_by_field(
    multilingual: TranscribeBackend, fields: Any, field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        async for _ in multilingual.execute(TranscribeRequest(audio=speech_file(), **fields)):
            pass
    assert caught.value.violations[0].field == field


def test_weights_in_half_precision_only_are_found(tmp_path: Path) -> None:
    folder = random_whisper(tmp_path)
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    backend_of(folder, num_beams=1).close()


def test_another_model_type_is_refused(tmp_path: Path) -> None:
    from tests.model_files.tiny_models import model_folder

    with pytest.raises(ConfigurationError, match="not whisper"):
        backend_of(model_folder(tmp_path))
    with pytest.raises(ConfigurationError, match=r"engine\.dtype: must be one of auto, float16"):
        backend_of(tmp_path, dtype="int8")
