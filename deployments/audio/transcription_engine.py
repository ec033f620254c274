"""The protocol of a speech-to-text engine, and its input and output."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Protocol

from pydantic import Field

from deployments.engine_choice import EngineOptions
from rbee_serve.worker.watchdog import Watchdog

if TYPE_CHECKING:
    from deployments.media.audio_decoder import Samples


class TranscriptionOptions(EngineOptions):
    """Options of every engine of the task `transcribe`."""

    max_audio_s: Annotated[float, Field(ge=1, le=86_400)] = 1800.0
    """Maximum length of a recording in seconds. Half an hour takes up to 0.5 GB of memory."""


@dataclass(frozen=True, slots=True)
class TranscriptionParams:
    """How to transcribe a recording. None selects the engine's default."""

    language: str | None = None
    translate: bool = False
    prompt: str | None = None
    temperature: float | None = None
    words: bool = False
    """Whether segments have word timestamps."""
    vad_filter: bool = False


@dataclass(frozen=True, slots=True)
class Word:
    """A word with its start and end in seconds of the recording. `probability` is the model's confidence."""

    text: str
    start: float
    end: float
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """Text with its start and end in seconds of the recording."""

    text: str
    start: float
    end: float
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True)
class Transcription:
    """The language of a recording and its segments. A window is processed when its first segment is requested.
    `notes` are sentences about what of the request was left out."""

    language: str
    language_probability: float
    segments: Iterator[Segment]
    notes: tuple[str, ...] = ()


def prompt_notes(tokens: int, max_tokens: int) -> tuple[str, ...]:
    """A note about a prompt that is longer than what the model reads of it: its end."""
    cut = f"The prompt has {tokens} tokens; only the last {max_tokens} are read"
    return (cut,) if tokens > max_tokens else ()


class TranscriptionEngine(Protocol):
    """A loaded model. It is used from one thread."""

    @property
    def languages(self) -> frozenset[str]:
        """The supported languages as ISO 639-1 codes; `{"en"}` for an English-only model."""
        ...

    @property
    def has_word_timestamps(self) -> bool:
        """Whether the model supports `TranscriptionParams.words`."""
        ...

    def transcribe(self, samples: Samples, params: TranscriptionParams) -> Transcription:
        """Start a transcription of `samples`: float32 in [-1, 1], mono, 16 kHz. Calls `WindowProgress.begin` before
        each window of 30 seconds. The times of its segments may exceed the recording a little, see `segment_times`."""
        ...


class WindowProgress:
    """Reports each window as a step of the engine, and stops the work on a cancelled request before its next window."""

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        self.cancelled = threading.Event()
        """Set when the request that the engine currently works on is cancelled."""

    def begin(self) -> None:
        """A window begins, so the previous one is finished. Raises `InterruptedError` after a cancellation."""
        self.step()

    def step(self) -> None:
        """Another bounded piece of work begins, such as a block of the spectrogram. Raises `InterruptedError` after a
        cancellation."""
        self._watchdog.step()
        if self.cancelled.is_set():
            raise InterruptedError("the request was cancelled")
