"""Speech with hibari: a small English ONNX model inside a Python package, 80 times faster than real time on one core.

Each voice is a model of 8 MB. The package contains `heart`; other voices are downloaded when the worker loads, from the
package's own location, and verified against its checksums.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from deployments.audio.encoding import faded
from deployments.audio.speech_engine import AudioPiece, SynthesisParams, clause_end, split_text
from deployments.engine_choice import EngineOptions
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.memory_plan.model_facts import ModelFacts
from rbee_serve.memory_plan.needs import NOTHING, MemoryNeeds
from rbee_serve.model_files.model_ref import PackageModel
from rbee_serve.worker.spec import LoadContext
from rbee_serve.worker.watchdog import Watchdog

if TYPE_CHECKING:
    import numpy as np

    from deployments.audio.encoding import Samples

MAX_PHONEMES = 400
"""Phonemes per forward pass; twice as many take three times as long and 150 MB more."""
MAX_FIRST_PHONEMES = 160
"""A longer first sentence (9 s) is split after a clause, for a low latency of the first audio."""
MAX_CHARACTERS = 600
MAX_WORD_LETTERS = 32
"""hibari cannot read numbers of more than 36 digits."""
MAX_WORD_PARTS = 12
"""Parts of one word; `state-of-the-art` has 7. hibari's time for a word grows with the cube of their number: minutes
for `a-b-a-b-…` of 2,000 letters."""

LEAD_S, TRAIL_S = 0.15, 0.2
"""Silence removed before and after a piece that was split inside a sentence. The rest is the pause of a comma."""

_SPACED_MARK = re.compile(r"\s+([,.;:!?])")
_ACCENTS = re.compile("[\u0300-\u036f]+")
"""Accents that form no character with their letter; hibari would split the word."""
_MIXED_NUMBER = re.compile(r"(?<=\d) (?=\d{1,2}/\d{1,2}(?![/\d]))")
_UPPER = "A-ZÀ-ÖØ-Þ"
_PART = re.compile(rf"[{_UPPER}]+|[^\W\d_{_UPPER}]+|\d+|\S")


class Options(EngineOptions):
    """Options of `engine: {name: hibari}`."""

    voices: list[str] = Field(default=["heart"], min_length=1)
    """The voices to load. The first one is the default of a request."""


def check(worker: WorkerConfig, options: Options) -> None:
    """See `WorkerSpec.check`."""
    if worker.model_ref is not None:
        raise ConfigurationError("model_ref: the engine hibari brings its own models; leave it out")
    if worker.gpus:
        raise ConfigurationError("gpus: the engine hibari runs on the CPU; leave it out, or set engine.name")
    known = json.loads(PackageModel("hibari", PurePosixPath("assets/voices.json")).locate().read_bytes())
    if unknown := [voice for voice in options.voices if voice not in known]:
        raise ConfigurationError(f"engine.voices: hibari has no voice {unknown[0]!r}; it has {', '.join(known)}")


def memory_needs(worker: WorkerConfig, options: Options, facts: ModelFacts, gpu_bytes: int) -> MemoryNeeds:
    """Nothing: it runs on the CPU."""
    return MemoryNeeds(weights=NOTHING, activations=NOTHING)


def load(context: LoadContext, options: Options) -> HibariEngine:
    """Load each configured voice. Raises `ConfigurationError` where one is unknown or cannot be downloaded."""
    check(context.worker, options)
    import hibari
    from hibari import voices as library

    phonemizers: dict[bool, Any] = {}
    voices = {}
    for name in options.voices:
        entry = library.VOICES[name]
        try:
            path = library.voice_path(name)
        except RuntimeError as exc:
            raise ConfigurationError(
                f"engine.voices: the download of {name} failed; see the worker's log for the reason"
            ) from exc
        if library.sha256_of(path) != entry["sha256"]:
            raise ConfigurationError(f"engine.voices: {path} is damaged; delete it to have it downloaded again")
        voice = hibari.Hibari(name, threads=context.worker.threads or 1, g2p=phonemizers.get(entry["british"]))
        phonemizers[entry["british"]] = voice.g2p
        voices[name] = voice
    return HibariEngine(voices, context.watchdog)


class _Part(NamedTuple):
    """The network's output for a part of the text: the spectra (empty if nothing can be spoken), whether the part is
    the beginning and the end of a sentence, and how many sentences are done with it."""

    spectra: list[np.ndarray[Any, Any]]
    starts_sentence: bool
    ends_sentence: bool
    done: int


class HibariEngine:
    """The loaded voices.

    Two stages: the network turns phonemes into spectra in a thread of its own, one part ahead, while the caller's
    thread synthesizes the samples of the previous part. All randomness is in the second stage, so the audio is the same
    as without the overlap.
    """

    has_speed = True
    max_s: float | None = None

    def __init__(self, voices: dict[str, Any], watchdog: Watchdog) -> None:
        from hibari import dsp

        self._voices = voices
        self._watchdog = watchdog
        self._samples_from = dsp.synth
        self._network_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hibari-network")
        self.voices = tuple(voices)
        self.sample_rate = int(next(iter(voices.values())).sample_rate)

    def synthesize(self, params: SynthesisParams) -> Iterator[AudioPiece]:
        """A piece for each sentence, with hibari's own samples unless a sentence must be split."""
        import numpy as np

        voice = self._voices[params.voice or self.voices[0]]
        random = np.random.default_rng(params.seed)
        sentences = [text for text in voice.split_sentences(params.prompt) if any(map(str.isalnum, text))]
        parts = self._parts(voice, sentences, params)
        next_part = self._network_thread.submit(next, parts, None)
        alone = params.low_latency  # the first piece is urgent, so the network does not run beside it
        while (part := next_part.result()) is not None:
            if not alone:
                next_part = self._network_thread.submit(next, parts, None)
            samples = self._samples_from(*part.spectra, random) if part.spectra else np.zeros(0, np.float32)
            if not (part.starts_sentence and part.ends_sentence):
                samples = self._tightened(samples, params.speed, part.starts_sentence, part.ends_sentence)
            yield AudioPiece(samples, part.done, len(sentences))
            if alone:
                alone, next_part = False, self._network_thread.submit(next, parts, None)

    def _parts(self, voice: Any, sentences: Sequence[str], params: SynthesisParams) -> Iterator[_Part]:
        """The first stage."""
        import numpy as np

        speed = np.asarray([params.speed], np.float32)
        max_phonemes = max(1, int(MAX_PHONEMES * min(params.speed, 1.0)))
        max_first = MAX_FIRST_PHONEMES if params.low_latency else max_phonemes
        for done, sentence in enumerate(sentences):
            texts = list(split_text(_readable(sentence), MAX_CHARACTERS))
            for t, text in enumerate(texts, 1):
                if params.cancelled():
                    return
                parts = list(_split_phonemes(voice.g2p(text), max_first, max_phonemes)) or [""]
                max_first = max_phonemes
                self._watchdog.step()
                for p, phonemes in enumerate(parts, 1):
                    ids = np.asarray([voice.ids(phonemes)], np.int64)
                    silent = ids.size <= 2 or not any(map(str.isalpha, phonemes))  # padding and punctuation only
                    spectra = () if silent else voice.sess.run(None, {"ids": ids, "speed": speed})
                    last = t == len(texts) and p == len(parts)
                    yield _Part([batch[0] for batch in spectra], t == p == 1, last, done + last)

    def _tightened(self, samples: Samples, speed: float, starts_sentence: bool, ends_sentence: bool) -> Samples:
        """A part of a sentence without the pauses that surround a whole one."""
        lead, trail = (round(seconds / speed * self.sample_rate) for seconds in (LEAD_S, TRAIL_S))
        inner = samples[0 if starts_sentence else lead : len(samples) - (0 if ends_sentence else trail)]
        return faded(inner, self.sample_rate, fade_in=not starts_sentence, fade_out=not ends_sentence)


def _readable(sentence: str) -> str:
    """The sentence with words of too many parts split by spaces. Punctuation is joined to the word before it, as hibari
    expects. `2 1/2` is read as "two and one half"."""
    sentence = _MIXED_NUMBER.sub(" and ", _ACCENTS.sub("", sentence))
    words = _SPACED_MARK.sub(r"\1", sentence).split(" ")
    if all(len(word) <= MAX_WORD_LETTERS and len(_PART.findall(word)) <= MAX_WORD_PARTS for word in words):
        return sentence
    return " ".join(short for word in words for short in _shortened(word))


def _shortened(word: str) -> Iterator[str]:
    parts = _PART.findall(word)
    for start in range(0, len(parts), MAX_WORD_PARTS):
        for short in split_text("".join(parts[start : start + MAX_WORD_PARTS]), MAX_WORD_LETTERS):
            yield short.lstrip(",.;:!?")


def _split_phonemes(phonemes: str, max_first: int, max_phonemes: int) -> Iterator[str]:
    if len(phonemes) > max_first and (end := clause_end(phonemes, max_first)):
        yield phonemes[:end]
        phonemes = phonemes[end:].lstrip()
    yield from split_text(phonemes, max_phonemes)
