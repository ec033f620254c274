"""The protocol of a text-to-audio engine, and its input and output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from deployments.audio.encoding import Samples


MAX_UNTOLD_S = 0.1
"""Engines round a length up to whole frames."""


@dataclass(frozen=True, slots=True)
class SynthesisParams:
    """What to synthesize. `voice` is one of the engine's; `max_s` is the most seconds of audio that are used."""

    prompt: str
    voice: str | None
    speed: float
    seed: int
    max_s: float
    low_latency: bool
    """Whether the first piece should be short, because it is streamed."""
    cancelled: Callable[[], bool]
    """Whether the request was cancelled. An engine that takes long for one piece polls it."""


class AudioPiece(NamedTuple):
    """The next part of the audio. `done` of `total` sentences, or pieces of music, are complete with it."""

    samples: Samples
    done: int
    total: int


class Spoken:
    """How much of a text became audio."""

    def __init__(self) -> None:
        self._done = self._total = self._silent = 0
        self._has_audio = False

    def add(self, piece: AudioPiece) -> bool:
        """Count a piece. Returns whether it completes a sentence."""
        self._total = piece.total
        self._has_audio |= len(piece.samples) > 0
        if piece.done <= self._done:
            return False
        self._silent += not self._has_audio
        self._done, self._has_audio = piece.done, False
        return True

    def notes(self, left_out_s: float) -> Iterator[str]:
        """Sentences about what was left out. `left_out_s` seconds of the last piece exceeded the maximum length."""
        if self._silent:
            yield f"{self._silent} of {self._total} sentences hold nothing that this voice can speak"
        if self._done < self._total or left_out_s > MAX_UNTOLD_S:
            yield "The audio has its maximum length, so the rest of the text is left out"


class SpeechEngine(Protocol):
    """A loaded model. Its audio is float32, mono, with `sample_rate` samples per second."""

    sample_rate: int
    voices: Sequence[str]
    """The names of the voices, the default first. Empty for a model without named voices."""
    has_speed: bool
    """Whether the model supports other speeds than 1."""
    max_s: float | None
    """The most seconds of audio of one request; None if there is no bound."""

    def synthesize(self, params: SynthesisParams) -> Iterator[AudioPiece]:
        """The audio of a text. Blocks while a piece is computed; used from one thread only."""
        ...


def split_text(text: str, max_characters: int) -> Iterator[str]:
    """Parts of at most `max_characters`: split after a clause if possible, else between words, else anywhere."""
    while len(text) > max_characters:
        end = clause_end(text, max_characters) or max(text.rfind(" ", 0, max_characters + 1), 0) or max_characters
        yield text[:end]
        text = text[end:].lstrip()
    if text:
        yield text


def clause_end(text: str, max_characters: int) -> int:
    """Length of the whole clauses within the first `max_characters`; 0 if no clause ends there."""
    return max(text.rfind(mark + " ", 0, max_characters + 1) for mark in ",;:—") + 1
