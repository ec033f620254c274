"""Text to audio with transformers: VITS, Bark, SpeechT5, MusicGen and related models.

Speech models get one sentence at a time. MusicGen audio is returned in pieces while it is generated. Each forward pass
is a step for the watchdog and a point where a cancelled request stops.
"""

from __future__ import annotations

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
from deployments.audio.speech_engine import AudioPiece, SynthesisParams, split_text
from deployments.audio.speech_needs import speech_needs
from deployments.engine_choice import EngineOptions
from deployments.torch_runtime.device import torch_device
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.memory_plan.model_facts import ModelFacts
from rbee_serve.memory_plan.needs import MemoryNeeds
from rbee_serve.model_files.memory_check import require_memory, weights_memory_bytes
from rbee_serve.model_files.resolve import check_local, prepare
from rbee_serve.model_files.weight_files import weights_in
from rbee_serve.state import LoadProgress
from rbee_serve.worker.registry import extras_for
from rbee_serve.worker.spec import LoadContext
from rbee_serve.worker.watchdog import Watchdog

if TYPE_CHECKING:
    from deployments.audio.encoding import Samples

DESCRIBED = frozenset({"musicgen", "musicgen_melody"})
"""Model types whose prompt describes the audio instead of being spoken."""
SPECTROGRAM = frozenset({"speecht5", "fastspeech2_conformer"})
"""Model types that need a vocoder."""
MAX_CHARACTERS = 300
"""Length of one sentence: Bark generates at most 13 s."""

_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])\s*|\s*\n\s*")  # noqa: RUF001 - Chinese and Japanese


class Options(EngineOptions):
    """Options of `engine: {name: transformers}`."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """The type of the weights in memory; `auto` is the type in the files."""
    voices: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Voices by name, each as the model's own parameters: `{anna: {speaker_id: 3}}`, `{bo: {voice_preset:
    v2/en_speaker_6}}`, `{cy: {speaker_embeddings: "file:cy.npy"}}`. Without this option, the speakers of a model are
    voices named by their number."""
    vocoder: str | None = None
    """`model_ref` of the vocoder, for models that generate spectrograms, such as SpeechT5."""


def check(worker: WorkerConfig, options: Options) -> None:
    """See `WorkerSpec.check`."""
    if worker.model_ref is None:
        raise ConfigurationError("model_ref: is missing; use hf:ORG/NAME, file:PATH or pkg:PACKAGE/PATH")
    if importlib.util.find_spec("transformers") is None:
        extra = extras_for("cuda" if worker.gpus or worker.backend == "cuda" else "cpu", "cpu")
        raise ConfigurationError(f"engine.name: transformers is not installed; pip install 'rbee-serve[{extra}]'")
    check_local(worker)


def memory_needs(worker: WorkerConfig, options: Options, facts: ModelFacts, gpu_bytes: int) -> MemoryNeeds:
    """See `WorkerSpec.memory`."""
    return speech_needs(options.dtype, facts)


def load(context: LoadContext, options: Options) -> TransformersSpeechEngine:
    """Download, check and load the model. Raises `ConfigurationError`, `InsufficientVram`, `InsufficientResources`."""
    worker = context.worker
    check(worker, options)
    import transformers

    assert worker.model_ref is not None
    folder = prepare(worker.model_ref, context.report, variant_for=options.dtype)
    kind = transformers.AutoConfig.from_pretrained(folder).model_type
    vocoder_folder = None
    if kind in SPECTROGRAM:
        if options.vocoder is None:
            raise ConfigurationError(f"engine.vocoder: {kind} needs one, such as hf:microsoft/speecht5_hifigan")
        if kind == "speecht5" and not options.voices:
            raise ConfigurationError('engine.voices: speecht5 needs {NAME: {speaker_embeddings: "file:NAME.npy"}}')
        vocoder_folder = prepare(options.vocoder, context.report)
    context.wait_for_gpu()
    require_memory(context.device, {"weights": weights_memory_bytes(folder, options.dtype)})
    context.report(LoadProgress(stage="loading_to_vram"))
    device = torch_device(context.device)
    extras = {}
    if vocoder_folder is not None:
        vocoder = transformers.SpeechT5HifiGan.from_pretrained(vocoder_folder, use_safetensors=True)
        extras["vocoder"] = vocoder.to(device)
    model_options: dict[str, Any] = {"use_safetensors": True}
    if variant := weights_in(folder, options.dtype).variant:
        model_options["variant"] = variant
    pipeline = transformers.pipeline(
        "text-to-audio",
        model=str(folder),
        device=device,
        dtype=options.dtype,
        trust_remote_code=False,
        model_kwargs=model_options,
        **extras,
    )
    if pipeline.vocoder is not None:
        pipeline.vocoder.to(pipeline.model.dtype)
    return TransformersSpeechEngine(pipeline, options.voices, context.watchdog)


class TransformersSpeechEngine:
    """A `TextToAudioPipeline`. `voices` are the model's parameters by voice."""

    def __init__(self, pipeline: Any, voices: dict[str, dict[str, Any]], watchdog: Watchdog) -> None:
        from transformers import PreTrainedModel

        self._pipeline = pipeline
        self._model = pipeline.model
        self._watchdog = watchdog
        self._cancelled: Callable[[], bool] = lambda: False
        speakers = getattr(self._model.config, "num_speakers", 1)
        numbered = {str(speaker): {"speaker_id": speaker} for speaker in range(speakers)} if speakers > 1 else {}
        dtype = self._model.dtype
        self._voices = {name: _parameters(values, dtype) for name, values in (voices or numbered).items()}
        self.voices = tuple(self._voices)
        self.sample_rate = int(pipeline.sampling_rate)
        self.has_speed = "speaking_rate" in inspect.signature(self._model.forward).parameters
        self.max_s = self._max_s() if self._model.config.model_type in DESCRIBED else None
        for module in self._model.modules():
            if isinstance(module, PreTrainedModel):
                module.register_forward_pre_hook(self._before_forward)

    def synthesize(self, params: SynthesisParams) -> Iterator[AudioPiece]:
        """A piece for each sentence; for described audio, a piece every few seconds if the codec supports it."""
        import numpy as np

        described = self._model.config.model_type in DESCRIBED
        if described and can_stream(self._model):
            yield from self._streamed(params)
            return
        texts = [params.prompt] if described else sentences(params.prompt)
        for done, text in enumerate(texts, 1):
            if not self._pipeline.tokenizer(text)["input_ids"]:  # all of its characters are unknown to the model
                yield AudioPiece(np.zeros(0, np.float32), done, len(texts))
                continue
            self._prepare(params, done)
            yield AudioPiece(faded(self._whole(text, params), self.sample_rate), done, len(texts))

    def _streamed(self, params: SynthesisParams) -> Iterator[AudioPiece]:
        tokens = self._pipeline.tokenizer([params.prompt], return_tensors="pt").to(self._model.device)
        if not tokens["input_ids"].numel():
            return
        stream = MusicStream(self._model, self._audio_tokens(params.max_s), {**tokens, **self._voice(params)})
        with closing(stream.pieces()) as pieces:
            for done in range(1, stream.count + 1):
                self._prepare(params, done)
                samples = faded(next(pieces), self.sample_rate, fade_in=done == 1, fade_out=done == stream.count)
                yield AudioPiece(samples, done, stream.count)

    def _prepare(self, params: SynthesisParams, part: int) -> None:
        """Before each part: another request may have used the model since the last one."""
        import torch

        self._cancelled = params.cancelled
        torch.manual_seed((params.seed + part) % 2**63)

    def _voice(self, params: SynthesisParams) -> dict[str, Any]:
        return dict(self._voices[params.voice or self.voices[0]]) if self.voices else {}

    def _whole(self, text: str, params: SynthesisParams) -> Samples:
        import numpy as np

        voice = self._voice(params)
        preprocessing = {name: voice.pop(name) for name in ("voice_preset",) if name in voice}
        if self.has_speed:
            voice["speaking_rate"] = self._model.config.speaking_rate * params.speed
        arguments: dict[str, Any] = {"forward_params": voice}
        if preprocessing:
            arguments["preprocess_params"] = preprocessing
        if self._model.config.model_type in DESCRIBED:
            arguments["generate_kwargs"] = {"max_new_tokens": self._audio_tokens(params.max_s)}
        audio = np.asarray(self._pipeline(text, **arguments)["audio"], np.float32)
        return audio if audio.ndim == 1 else audio.mean(axis=0)

    def _audio_tokens(self, seconds: float) -> int:
        """Tokens of that much audio, at most the model's maximum."""
        config = self._model.config
        # Each codebook starts one token after the previous one.
        tokens: int = math.ceil(seconds * config.audio_encoder.frame_rate) + config.decoder.num_codebooks
        max_tokens: int = self._model.generation_config.max_length
        return min(tokens, max_tokens)

    def _max_s(self) -> float:
        config = self._model.config
        tokens: int = self._model.generation_config.max_length - config.decoder.num_codebooks
        return round(tokens / float(config.audio_encoder.frame_rate), 1)

    def _before_forward(self, *arguments: Any) -> None:
        """Runs before each forward pass of each submodel."""
        self._watchdog.step()
        if self._cancelled():
            raise InterruptedError("the request was cancelled")


def sentences(text: str) -> list[str]:
    """The sentences of a text in any language, at most `MAX_CHARACTERS` long, each with a letter or a digit."""
    parts = (part for sentence in _SENTENCE_END.split(text) for part in split_text(sentence.strip(), MAX_CHARACTERS))
    return [part for part in parts if any(map(str.isalnum, part))]


def _parameters(values: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """A voice's parameters. Those that name a file become an array of that type, with a voice in each row."""
    return {name: _array(value, dtype) if str(value).startswith("file:") else value for name, value in values.items()}


def _array(value: str, dtype: Any) -> Any:
    import numpy as np
    import torch

    path = Path(value.removeprefix("file:")).expanduser()
    try:
        return torch.atleast_2d(torch.from_numpy(np.load(path, allow_pickle=False)).to(dtype))
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"engine.voices: {path} is not an array in NumPy's format (.npy)") from exc
