"""The protocol of a text-to-audio engine, and its input and output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from deployments.audio.encoding import Samples


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


class SpeechEngine(Protocol):
    """A loaded model. Its audio is float32, mono, with `sample_rate` samples per second."""

    sample_rate: int
    voices: Sequence[str]
    """The names of the voices, the default first. Empty for a model without named voices."""
    has_speed: bool
    """Whether the model supports other speeds than 1."""

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
