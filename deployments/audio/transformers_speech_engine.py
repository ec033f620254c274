"""Speech, music and sounds by the text-to-audio models of transformers: VITS, Bark, SpeechT5, MusicGen and relatives.

Models of speech get one sentence at a time; the sound of MusicGen comes in pieces while it is made. A forward pass is
the engine's step: there it tells that it gets on, and stops when nobody waits any more.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from deployments.audio.encoding import faded
from deployments.audio.musicgen_stream import MusicStream, can_stream
from deployments.audio.speech_engine import AudioPiece, EngineOptions, SynthesisParams, cut, parse_options
from deployments.torch_runtime.device import torch_device
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.memory_check import require_memory, weights_memory_bytes
from rbee_serve.model_files.resolve import check_local, prepare
from rbee_serve.state import LoadProgress
from rbee_serve.worker.spec import LoadContext
from rbee_serve.worker.watchdog import Watchdog

if TYPE_CHECKING:
    from deployments.audio.speech_engine import Samples

DESCRIBED = frozenset({"musicgen", "musicgen_melody"})
"""Models whose prompt describes the whole sound instead of being spoken."""
SPECTROGRAM = frozenset({"speecht5", "fastspeech2_conformer"})
"""Models that need a vocoder beside them."""
MAX_CHARACTERS = 300
"""Of one sentence: Bark has room for 13 s."""

_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])\s*|\s*\n\s*")  # noqa: RUF001 - Chinese and Japanese


class TransformersOptions(EngineOptions):
    """Options of `engine: {name: transformers}`."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """The type of the weights in memory; `auto` is the one they are stored in."""
    voices: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Voices by name, each as the model's own parameters: `{anna: {speaker_id: 3}}`, `{bo: {voice_preset:
    v2/en_speaker_6}}`, `{cy: {speaker_embeddings: "file:cy.npy"}}`. Speaker numbers are voices by themselves."""
    vocoder: str | None = None
    """`model_ref` of the vocoder, for models that make spectrograms, such as SpeechT5."""


def check(worker: WorkerConfig) -> None:
    """See `WorkerSpec.check`."""
    parse_options(TransformersOptions, worker)
    if worker.model_ref is None:
        raise ConfigurationError("model_ref: is missing; use hf:ORG/NAME, file:PATH or pkg:PACKAGE/PATH")
    if importlib.util.find_spec("transformers") is None:
        raise ConfigurationError("engine.name: transformers is not installed; pip install 'rbee-serve[cpu]' or [gpu]")
    check_local(worker)


def load(context: LoadContext) -> TransformersEngine:
    """Fetch and check the model's files, then load it. Raises `ConfigurationError`, or that it does not fit."""
    worker = context.worker
    check(worker)
    options = parse_options(TransformersOptions, worker)
    assert worker.model_ref is not None
    folder = prepare(worker.model_ref, context.report)
    require_memory(context.device, {"weights": weights_memory_bytes(folder, options.dtype)}, context.device.fraction)
    context.report(LoadProgress(stage="loading_to_vram"))
    transformers = importlib.import_module("transformers")
    kind = transformers.AutoConfig.from_pretrained(folder).model_type
    device = torch_device(context.device)
    extras = {}
    if kind in SPECTROGRAM:
        if options.vocoder is None:
            raise ConfigurationError(f"engine.vocoder: {kind} needs one, such as hf:microsoft/speecht5_hifigan")
        if kind == "speecht5" and not options.voices:
            raise ConfigurationError('engine.voices: speecht5 needs {NAME: {speaker_embeddings: "file:NAME.npy"}}')
        vocoder = transformers.SpeechT5HifiGan.from_pretrained(
            prepare(options.vocoder, context.report), use_safetensors=True
        )
        extras["vocoder"] = vocoder.to(device)
    pipeline = transformers.pipeline(
        "text-to-audio",
        model=str(folder),
        device=device,
        dtype=options.dtype,
        trust_remote_code=False,
        model_kwargs={"use_safetensors": True},
        **extras,
    )
    if pipeline.vocoder is not None:
        pipeline.vocoder.to(pipeline.model.dtype)
    return TransformersEngine(pipeline, options.voices, context.watchdog)


class TransformersEngine:
    """A `TextToAudioPipeline`. `voices` are the parameters of each, by name."""

    def __init__(self, pipeline: Any, voices: dict[str, dict[str, Any]], steps: Watchdog) -> None:
        self._pipeline = pipeline
        self._model = pipeline.model
        self._steps = steps
        self._cancelled: Callable[[], bool] = lambda: False
        speakers = getattr(self._model.config, "num_speakers", 1)
        numbered = {str(number): {"speaker_id": number} for number in range(speakers)} if speakers > 1 else {}
        dtype = self._model.dtype
        self._voices = {name: _parameters(values, dtype) for name, values in (voices or numbered).items()}
        self.voices = tuple(self._voices)
        self.sample_rate = int(pipeline.sampling_rate)
        self.has_speed = "speaking_rate" in inspect.signature(self._model.forward).parameters
        model_type = importlib.import_module("transformers").PreTrainedModel
        for part in self._model.modules():
            if isinstance(part, model_type):
                part.register_forward_pre_hook(self._step)

    def speak(self, order: SynthesisParams) -> Iterator[AudioPiece]:
        """A piece for each sentence; for a sound that the prompt describes, one every few seconds if its codec can."""
        described = self._model.config.model_type in DESCRIBED
        if described and can_stream(self._model):
            yield from self._described(order)
            return
        texts = [order.prompt] if described else sentences(order.prompt)
        for done, text in enumerate(texts, 1):
            if not self._pipeline.tokenizer(text)["input_ids"]:
                continue  # in letters that the model does not know
            self._turn(order, done)
            yield AudioPiece(faded(self._sound(text, order), self.sample_rate), done, len(texts))

    def _described(self, order: SynthesisParams) -> Iterator[AudioPiece]:
        words = self._pipeline.tokenizer([order.prompt], return_tensors="pt").to(self._model.device)
        if not words["input_ids"].numel():
            return
        sound = MusicStream(self._model, self._tokens(order.most_s), {**words, **self._voice(order)})
        with closing(sound.pieces()) as pieces:
            for done in range(1, sound.count + 1):
                self._turn(order, done)
                samples = faded(next(pieces), self.sample_rate, begin=done == 1, end=done == sound.count)
                yield AudioPiece(samples, done, sound.count)

    def _turn(self, order: SynthesisParams, part: int) -> None:
        """Before each part: others may have been at work since the last one."""
        self._cancelled = order.cancelled
        importlib.import_module("torch").manual_seed((order.seed + part) % 2**63)

    def _voice(self, order: SynthesisParams) -> dict[str, Any]:
        return dict(self._voices[order.voice or self.voices[0]]) if self.voices else {}

    def _sound(self, text: str, order: SynthesisParams) -> Samples:
        import numpy as np

        voice = self._voice(order)
        reading = {name: voice.pop(name) for name in ("voice_preset",) if name in voice}
        if self.has_speed:
            voice["speaking_rate"] = self._model.config.speaking_rate * order.speed
        parameters: dict[str, Any] = {"forward_params": voice}
        if reading:
            parameters["preprocess_params"] = reading
        if self._model.config.model_type in DESCRIBED:
            parameters["generate_kwargs"] = {"max_new_tokens": self._tokens(order.most_s)}
        sound = np.asarray(self._pipeline(text, **parameters)["audio"], np.float32)
        return sound if sound.ndim == 1 else sound.mean(axis=0)

    def _tokens(self, seconds: float) -> int:
        """How many tokens such a sound takes, but no more than the model is made for."""
        config = self._model.config
        # Each codebook begins one token later than the one before it.
        wanted: int = math.ceil(seconds * config.audio_encoder.frame_rate) + config.decoder.num_codebooks
        most: int = self._model.generation_config.max_length
        return min(wanted, most)

    def _step(self, *arguments: Any) -> None:
        """Before each forward pass of each part."""
        self._steps.step()
        if self._cancelled():
            raise InterruptedError("nobody waits for this sound any more")


def sentences(text: str) -> list[str]:
    """The sentences of a text in any language, none of them long, each with something in it to be said."""
    found = (part for sentence in _SENTENCE_END.split(text) for part in cut(sentence.strip(), MAX_CHARACTERS))
    return [sentence for sentence in found if any(map(str.isalnum, sentence))]


def _parameters(values: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """A voice's parameters, with arrays of this type, a voice in each row, read from the files that they name."""
    return {name: _array(value, dtype) if str(value).startswith("file:") else value for name, value in values.items()}


def _array(value: str, dtype: Any) -> Any:
    import numpy as np

    path = Path(value.removeprefix("file:")).expanduser()
    torch = importlib.import_module("torch")
    try:
        return torch.atleast_2d(torch.from_numpy(np.load(path, allow_pickle=False)).to(dtype))
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"engine.voices: {path} is not an array in NumPy's format (.npy)") from exc
