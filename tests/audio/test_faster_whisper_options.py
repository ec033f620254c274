"""What the default engine asks of faster-whisper. Neither the library nor a model is needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deployments.audio.faster_whisper_engine import FasterWhisper
from deployments.audio.transcription_engine import TranscriptionParams

SAMPLES = np.zeros(16_000, np.float32)
UNASKED: dict[str, Any] = {
    "language": None,
    "task": "transcribe",
    "initial_prompt": None,
    "word_timestamps": False,
    "vad_filter": False,
}


class NotingModel:
    """Hears nothing, in German, and notes what it was asked."""

    supported_languages = ("de", "en")

    def __init__(self, *segments: Any) -> None:
        self.segments = segments
        self.asked: list[dict[str, Any]] = []

    def transcribe(self, samples: Any, **options: Any) -> tuple[Any, Any]:
        """As `WhisperModel.transcribe`."""
        assert samples is SAMPLES
        self.asked.append(options)
        return iter(self.segments), SimpleNamespace(language="de", language_probability=0.75)


def asked(wish: TranscriptionParams, **options: Any) -> dict[str, Any]:
    model = NotingModel()
    FasterWhisper(model, options).transcribe(SAMPLES, wish)
    [found] = model.asked
    return found


def test_what_nobody_asks_for_is_left_to_the_library() -> None:
    assert asked(TranscriptionParams()) == UNASKED


@pytest.mark.parametrize(
    ("wish", "options"),
    [
        (TranscriptionParams(language="de"), {"language": "de"}),
        (TranscriptionParams(translate=True), {"task": "translate"}),
        (TranscriptionParams(prompt="Names: Ada."), {"initial_prompt": "Names: Ada."}),
        (TranscriptionParams(words=True), {"word_timestamps": True}),
        (TranscriptionParams(vad_filter=True), {"vad_filter": True}),
        (TranscriptionParams(temperature=0.4), {"temperature": 0.4}),
        (TranscriptionParams(temperature=0.0), {"temperature": 0.0}),
    ],
)
def test_each_wish_reaches_the_model_under_the_library_s_name_for_it(
    wish: TranscriptionParams, options: dict[str, Any]
) -> None:
    assert asked(wish) == {**UNASKED, **options}


def test_wishes_are_asked_for_together() -> None:
    wish = TranscriptionParams(language="en", translate=True, prompt="p", temperature=0.2, words=True, vad_filter=True)
    assert asked(wish) == {
        "language": "en",
        "task": "translate",
        "initial_prompt": "p",
        "word_timestamps": True,
        "vad_filter": True,
        "temperature": 0.2,
    }


def test_the_options_of_the_configuration_hold_for_every_request() -> None:
    model = NotingModel()
    engine = FasterWhisper(model, {"beam_size": 1, "hotwords": "rbee"})
    for wish in (
        TranscriptionParams(temperature=0.4),
        TranscriptionParams(language="de"),
    ):  # a wish does not outlive its request
        engine.transcribe(SAMPLES, wish)
    configured = {**UNASKED, "beam_size": 1, "hotwords": "rbee"}
    assert model.asked == [{**configured, "temperature": 0.4}, {**configured, "language": "de"}]


def test_the_language_its_probability_and_the_segments_come_back() -> None:
    word = SimpleNamespace(word=" Guten", start=0.12345, end=0.5, probability=0.98765)
    model = NotingModel(
        SimpleNamespace(text=" Guten Tag.", start=0.0, end=1.23456, words=[word]),
        SimpleNamespace(text=" Ja.", start=1.5, end=2.0, words=None),
    )
    engine = FasterWhisper(model, {})
    assert engine.languages == {"de", "en"}
    heard = engine.transcribe(SAMPLES, TranscriptionParams())
    assert (heard.language, heard.language_probability) == ("de", 0.75)
    first, second = heard.segments
    assert (first.i, first.t, first.start, first.end) == (0, " Guten Tag.", 0.0, 1.235)
    [said] = first.words
    assert (said.t, said.start, said.end, said.probability) == (" Guten", 0.123, 0.5, 0.9877)
    assert (second.i, second.t, second.words) == (1, " Ja.", ())
    assert list(FasterWhisper(NotingModel(), {}).transcribe(SAMPLES, TranscriptionParams()).segments) == []
