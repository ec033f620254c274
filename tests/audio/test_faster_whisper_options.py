"""The arguments that the default engine passes to faster-whisper. No model is needed."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deployments.audio.faster_whisper_engine import FasterWhisperEngine, Options
from deployments.audio.transcription_engine import Segment, TranscriptionParams, Word

SAMPLES = np.zeros(16_000, np.float32)
DEFAULTS: dict[str, Any] = {
    "language": None,
    "task": "transcribe",
    "initial_prompt": None,
    "word_timestamps": False,
    "vad_filter": False,
    "beam_size": 5,
    "best_of": 5,
    "patience": 1.0,
    "length_penalty": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "condition_on_previous_text": True,
    "compression_ratio_threshold": 2.4,
    "log_prob_threshold": -1.0,
    "no_speech_threshold": 0.6,
    "hallucination_silence_threshold": None,
    "hotwords": None,
}


class RecordingModel:
    """Returns the given segments, in German, and records its arguments."""

    supported_languages = ("de", "en")

    def __init__(self, *segments: Any) -> None:
        self.segments = segments
        self.calls: list[dict[str, Any]] = []

    def transcribe(self, samples: Any, **arguments: Any) -> tuple[Any, Any]:
        """As `WhisperModel.transcribe`."""
        assert samples is SAMPLES
        self.calls.append(arguments)
        return iter(self.segments), SimpleNamespace(language="de", language_probability=0.75)


def arguments_for(params: TranscriptionParams, **options: Any) -> dict[str, Any]:
    model = RecordingModel()
    FasterWhisperEngine(model, Options(**options)).transcribe(SAMPLES, params)
    [arguments] = model.calls
    return arguments


def test_the_defaults_are_the_library_s_own() -> None:
    faster_whisper = pytest.importorskip("faster_whisper")
    parameters = inspect.signature(faster_whisper.WhisperModel.transcribe).parameters
    assert {name: parameters[name].default for name in DEFAULTS} == DEFAULTS
    assert arguments_for(TranscriptionParams()) == DEFAULTS


@pytest.mark.parametrize(
    ("params", "arguments"),
    [
        (TranscriptionParams(language="de"), {"language": "de"}),
        (TranscriptionParams(translate=True), {"task": "translate"}),
        (TranscriptionParams(prompt="Names: Ada."), {"initial_prompt": "Names: Ada."}),
        (TranscriptionParams(words=True), {"word_timestamps": True}),
        (TranscriptionParams(vad_filter=True), {"vad_filter": True}),
        (TranscriptionParams(temperature=0.4), {"temperature": 0.4}),
        (TranscriptionParams(temperature=0.0), {"temperature": 0.0}),
        (
            TranscriptionParams("en", translate=True, prompt="p", temperature=0.2, words=True, vad_filter=True),
            {
                "language": "en",
                "task": "translate",
                "initial_prompt": "p",
                "word_timestamps": True,
                "vad_filter": True,
                "temperature": 0.2,
            },
        ),
    ],
)
def test_each_parameter_is_passed_by_the_library_s_name(params: TranscriptionParams, arguments: dict[str, Any]) -> None:
    assert arguments_for(params) == {**DEFAULTS, **arguments}


def test_the_configured_options_apply_to_every_request() -> None:
    model = RecordingModel()
    engine = FasterWhisperEngine(model, Options(beam_size=1, hotwords="rbee", compute_type="int8", max_audio_s=60))
    engine.transcribe(SAMPLES, TranscriptionParams(temperature=0.4))
    engine.transcribe(SAMPLES, TranscriptionParams(language="de"))
    configured = {**DEFAULTS, "beam_size": 1, "hotwords": "rbee"}
    assert model.calls == [{**configured, "temperature": 0.4}, {**configured, "language": "de"}]


def test_the_language_its_probability_and_the_segments_are_returned() -> None:
    word = SimpleNamespace(word=" Guten", start=0.125, end=0.5, probability=0.75)
    model = RecordingModel(
        SimpleNamespace(text=" Guten Tag.", start=0.0, end=1.25, words=[word]),
        SimpleNamespace(text=" Ja.", start=1.5, end=2.0, words=None),
    )
    engine = FasterWhisperEngine(model, Options())
    assert engine.languages == {"de", "en"}
    transcription = engine.transcribe(SAMPLES, TranscriptionParams())
    assert (transcription.language, transcription.language_probability) == ("de", 0.75)
    assert list(transcription.segments) == [
        Segment(" Guten Tag.", 0.0, 1.25, (Word(" Guten", 0.125, 0.5, 0.75),)),
        Segment(" Ja.", 1.5, 2.0),
    ]
    silent = FasterWhisperEngine(RecordingModel(), Options())
    assert list(silent.transcribe(SAMPLES, TranscriptionParams()).segments) == []
