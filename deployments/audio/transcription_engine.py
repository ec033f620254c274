"""What every engine for speech to text is towards its worker."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rbee_serve.outputs import SegmentOutput
from rbee_serve.worker.watchdog import Watchdog

if TYPE_CHECKING:
    from deployments.media.audio_decoder import Samples


@dataclass(frozen=True, slots=True)
class TranscriptionParams:
    """How a recording is to be transcribed. None leaves it to the engine."""

    language: str | None = None
    translate: bool = False
    prompt: str | None = None
    temperature: float | None = None
    words: bool = False
    vad_filter: bool = False


@dataclass(frozen=True, slots=True)
class Transcription:
    """The language of a recording, and what is said in it: each window is worked on when its first segment is asked
    for."""

    language: str
    language_probability: float
    segments: Iterator[SegmentOutput]


class TranscriptionEngine(Protocol):
    """A loaded model. It is used from one thread."""

    @property
    def languages(self) -> frozenset[str]:
        """The languages that it knows, as ISO 639-1 codes; `{"en"}` for a model of English only."""
        ...

    def transcribe(self, samples: Samples, wish: TranscriptionParams) -> Transcription:
        """Begin to listen. `WindowProgress.begin` is called before each window of 30 seconds."""
        ...


class ClientDisconnected(Exception):
    """Nobody waits for the recording any more."""


class WindowProgress:
    """Counts windows as steps of the engine, and stops before the next one where nobody waits for it."""

    def __init__(self, steps: Watchdog) -> None:
        self._steps = steps
        self.left = threading.Event()
        """Whether the client has left for whom the engine works at the moment."""

    def begin(self) -> None:
        """A window begins, so the one before has been a step. Raises `ClientDisconnected`."""
        self.step()

    def step(self) -> None:
        """Something else of bounded length is done, such as a part of the spectrum. Raises `ClientDisconnected`."""
        self._steps.step()
        if self.left.is_set():
            raise ClientDisconnected
