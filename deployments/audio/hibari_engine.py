"""Speech by hibari: a small English model (ONNX) that a Python package carries, eighty times faster than real time on
one CPU core.

A voice is a model of its own, of 8 MB. `heart` is in the package; the others are fetched when the worker loads, from
where the package says, and are checked against its checksums.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from deployments.audio.encoding import faded
from deployments.audio.speech_engine import AudioPiece, EngineOptions, SynthesisParams, clause_end, cut, parse_options
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.model_ref import PackageModel
from rbee_serve.worker.spec import LoadContext
from rbee_serve.worker.watchdog import Watchdog

if TYPE_CHECKING:
    import numpy as np

    from deployments.audio.speech_engine import Samples

MAX_PHONEMES = 400
"""What hibari takes at once; twice as many take three times as long and 150 MB more."""
FIRST_PHONEMES = 160
"""A first sentence that is longer (9 s) is cut after a clause, so that somebody who waits hears something soon."""
MAX_CHARACTERS = 600
MAX_WORD_LETTERS = 32
"""hibari has no words for numbers of more than 36 digits."""
MAX_WORD_PARTS = 12
"""Of one word, such as `state-of-the-art` with 7. hibari's time for a word grows with the cube of their number: for
`a-b-a-b-…` of 2,000 letters it takes minutes."""

LEAD_S, TRAIL_S = 0.15, 0.2
"""What is taken from the silence before and after a piece where it was cut in the middle of a sentence: the rest is as
long as the pause of a comma."""

_SPACED_MARK = re.compile(r"\s+([,.;:!?])")
_UPPER = "A-ZÀ-ÖØ-Þ"
_PART = re.compile(rf"[{_UPPER}]+|[^\W\d_{_UPPER}]+|\d+|\S")


class HibariOptions(EngineOptions):
    """Options of `engine: {name: hibari}`."""

    voices: list[str] = Field(default=["heart"], min_length=1)
    """The voices to load; the first one speaks where a request names none."""


def check(worker: WorkerConfig) -> None:
    """See `WorkerSpec.check`."""
    options = parse_options(HibariOptions, worker)
    if worker.model_ref is not None:
        raise ConfigurationError("model_ref: the engine hibari brings its own models; leave it out")
    known = json.loads(PackageModel("hibari", PurePosixPath("assets/voices.json")).locate().read_bytes())
    if unknown := [voice for voice in options.voices if voice not in known]:
        raise ConfigurationError(f"engine.voices: hibari has no voice {unknown[0]!r}; it has {', '.join(known)}")


def load(context: LoadContext) -> HibariEngine:
    """Load each configured voice. Raises `ConfigurationError` where one cannot be had."""
    check(context.worker)
    hibari = importlib.import_module("hibari")
    known = importlib.import_module("hibari.voices")
    readers: dict[bool, Any] = {}
    voices = {}
    for name in parse_options(HibariOptions, context.worker).voices:
        entry = known.VOICES[name]
        try:
            path = known.voice_path(name)
        except RuntimeError as exc:
            raise ConfigurationError(f"engine.voices: {name} could not be fetched; the worker's log says why") from exc
        if known.sha256_of(path) != entry["sha256"]:
            raise ConfigurationError(f"engine.voices: {path} is damaged; remove it, and it is fetched again")
        voice = hibari.Hibari(name, threads=context.worker.threads or 1, g2p=readers.get(entry["british"]))
        readers[entry["british"]] = voice.g2p
        voices[name] = voice
    return HibariEngine(voices, context.watchdog)


class _Part(NamedTuple):
    """A part of the text as the network has read it: what makes sound of it (empty where nothing of it can be said),
    whether it is the beginning and the end of a sentence, and how many sentences are said with it."""

    spectra: list[np.ndarray[Any, Any]]
    begins: bool
    ends: bool
    done: int


class HibariEngine:
    """The voices that were loaded.

    A piece of sound is made in two stages. The network reads phonemes in a thread of its own, one part ahead, while the
    caller's thread makes sound of what was read before. All of the randomness is in the second stage, so the sound is
    the same as if one followed the other.
    """

    has_speed = True

    def __init__(self, voices: dict[str, Any], steps: Watchdog) -> None:
        self._voices = voices
        self._steps = steps
        self._synthesize = importlib.import_module("hibari.dsp").synth
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hibari-reader")
        self.voices = tuple(voices)
        self.sample_rate = int(next(iter(voices.values())).sample_rate)

    def speak(self, order: SynthesisParams) -> Iterator[AudioPiece]:
        """A piece for each sentence; what hibari itself gives, as long as no sentence has to be cut."""
        import numpy as np

        voice = self._voices[order.voice or self.voices[0]]
        random = np.random.default_rng(order.seed)
        sentences = voice.split_sentences(order.prompt)
        parts = self._read(voice, sentences, order)
        reading = self._reader.submit(next, parts, None)
        alone = order.low_latency  # somebody waits for the first piece, so nothing is made beside it
        while (part := reading.result()) is not None:
            if not alone:
                reading = self._reader.submit(next, parts, None)
            samples = self._synthesize(*part.spectra, random) if part.spectra else np.zeros(0, np.float32)
            if not (part.begins and part.ends):
                samples = self._tightened(samples, order.speed, part.begins, part.ends)
            yield AudioPiece(samples, part.done, len(sentences))
            if alone:
                alone, reading = False, self._reader.submit(next, parts, None)

    def _read(self, voice: Any, sentences: Sequence[str], order: SynthesisParams) -> Iterator[_Part]:
        """The first stage."""
        import numpy as np

        speed = np.asarray([order.speed], np.float32)
        most = max(1, int(MAX_PHONEMES * min(order.speed, 1.0)))
        first = FIRST_PHONEMES if order.low_latency else most
        for done, sentence in enumerate(sentences):
            texts = list(cut(_readable(sentence), MAX_CHARACTERS))
            for t, text in enumerate(texts, 1):
                if order.cancelled():
                    return
                parts = list(_parts(voice.g2p(text), first, most))
                first = most
                self._steps.step()
                for p, phonemes in enumerate(parts, 1):
                    ids = np.asarray([voice.ids(phonemes)], np.int64)
                    silent = ids.size <= 2  # the pads that stand around the others
                    spectra = () if silent else voice.sess.run(None, {"ids": ids, "speed": speed})
                    ends = t == len(texts) and p == len(parts)
                    yield _Part([batch[0] for batch in spectra], t == p == 1, ends, done + ends)

    def _tightened(self, samples: Samples, speed: float, begins: bool, ends: bool) -> Samples:
        """A part of a sentence without the pauses that stand around a whole one."""
        lead, trail = (round(seconds / speed * self.sample_rate) for seconds in (LEAD_S, TRAIL_S))
        inner = samples[0 if begins else lead : len(samples) - (0 if ends else trail)]
        return faded(inner, self.sample_rate, begin=not begins, end=not ends)


def _readable(sentence: str) -> str:
    """The sentence, with spaces in words of too many parts. Marks go with the word before them, as hibari has it."""
    words = _SPACED_MARK.sub(r"\1", sentence).split(" ")
    if all(len(word) <= MAX_WORD_LETTERS and len(_PART.findall(word)) <= MAX_WORD_PARTS for word in words):
        return sentence
    return " ".join(short for word in words for short in _shortened(word))


def _shortened(word: str) -> Iterator[str]:
    parts = _PART.findall(word)
    for begin in range(0, len(parts), MAX_WORD_PARTS):
        for short in cut("".join(parts[begin : begin + MAX_WORD_PARTS]), MAX_WORD_LETTERS):
            yield short.lstrip(",.;:!?")


def _parts(phonemes: str, first: int, most: int) -> Iterator[str]:
    if len(phonemes) > first and (at := clause_end(phonemes, first)):
        yield phonemes[:at]
        phonemes = phonemes[at:].lstrip()
    yield from cut(phonemes, most)
