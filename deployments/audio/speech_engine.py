"""What a speech engine is: from a text to pieces of sound, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np

    Samples = np.ndarray[tuple[int], np.dtype[np.float32]]

OptionsT = TypeVar("OptionsT", bound="EngineOptions")


@dataclass(frozen=True, slots=True)
class SynthesisParams:
    """What an engine is asked for. `voice` is one of its own; `most_s` is how many seconds can be used at most."""

    prompt: str
    voice: str | None
    speed: float
    seed: int
    most_s: float
    low_latency: bool
    """Whether somebody waits for the first piece, so that it should be a short one."""
    cancelled: Callable[[], bool]
    """Whether nobody wants the rest; an engine that works on a piece for long looks now and then."""


class AudioPiece(NamedTuple):
    """A part of the sound, which begins where the one before it ended. `done` of `total` sentences, or pieces of
    music, are there with it."""

    samples: Samples
    done: int
    total: int


class SpeechEngine(Protocol):
    """A loaded model. Its sound is float32, mono, of `sample_rate` samples per second."""

    sample_rate: int
    voices: Sequence[str]
    """The voices by name, the one that is taken where none is named first. Empty for a model without names for them."""
    has_speed: bool
    """Whether it can speak faster and slower."""

    def speak(self, order: SynthesisParams) -> Iterator[AudioPiece]:
        """The sound of a text. Blocks while a piece is made; only ever used in one thread."""
        ...


class EngineOptions(BaseModel):
    """`engine:` of a worker's configuration. A subclass has the options of one engine."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str
    """Which engine."""


def parse_options(options: type[OptionsT], worker: WorkerConfig) -> OptionsT:
    """`engine:` as a model. Raises `ConfigurationError` with a line for each key that is wrong."""
    try:
        return options.model_validate({"name": "", **worker.engine})
    except ValidationError as exc:
        raise ConfigurationError("\n".join(map(_fault, exc.errors(include_url=False)))) from None


def _fault(error: Any) -> str:
    path = ".".join(map(str, ("engine", *error["loc"])))
    return f"{path}: {'unknown key' if error['type'] == 'extra_forbidden' else error['msg']}"


def cut(text: str, most: int) -> Iterator[str]:
    """Parts of at most `most` characters: cut after a clause where there is one, else between words, else anywhere."""
    while len(text) > most:
        at = clause_end(text, most) or max(text.rfind(" ", 0, most + 1), 0) or most
        yield text[:at]
        text = text[at:].lstrip()
    if text:
        yield text


def clause_end(text: str, most: int) -> int:
    """How many of the first `most` characters are whole clauses; 0 where none ends there."""
    return max(text.rfind(mark + " ", 0, most + 1) for mark in ",;:—") + 1
