"""Whisper on PyTorch with transformers: for GPUs, and for models that exist as safetensors only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from deployments.audio.segment_times import leading_silence
from deployments.audio.transcription_engine import (
    Segment,
    Transcription,
    TranscriptionOptions,
    TranscriptionParams,
    WindowProgress,
    Word,
    prompt_notes,
)
from deployments.audio.whisper_needs import whisper_needs
from deployments.media.audio_files import SAMPLE_RATE
from deployments.torch_runtime.device import torch_device
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.memory_plan.model_facts import ModelFacts
from rbee_serve.memory_plan.needs import MemoryNeeds
from rbee_serve.model_files.memory_check import require_memory, weights_memory_bytes
from rbee_serve.model_files.resolve import Format, check_local, prepare
from rbee_serve.model_files.weight_files import weights_in
from rbee_serve.worker.spec import LoadContext

if TYPE_CHECKING:
    from deployments.media.audio_decoder import Samples

FORMATS: tuple[Format, ...] = ("safetensors",)

WINDOW_SAMPLES = 30 * SAMPLE_RATE
"""Whisper's input is 30 seconds."""
MAX_PROMPT_TOKENS = 223
"""Half of Whisper's context, less the token that marks a prompt."""
TEMPERATURE_FALLBACK: dict[str, Any] = {
    "temperature": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "compression_ratio_threshold": 1.35,
    "logprob_threshold": -1.0,
    "no_speech_threshold": 0.6,
}
"""A window with a repetitive or unlikely text is retried at the next temperature. The numbers are transformers'."""


class Options(TranscriptionOptions):
    """Options of `engine: {name: transformers}`, with the names of transformers."""

    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """The type of the weights in memory; `auto` is float16 on a GPU and float32 on a CPU."""
    num_beams: Annotated[int, Field(ge=1, le=100)] | None = None
    """Beams of the search; the model's own number if left out."""


def check(worker: WorkerConfig, options: Options) -> None:
    """See `WorkerSpec.check`."""
    check_local(worker, FORMATS)


def memory_needs(worker: WorkerConfig, options: Options, facts: ModelFacts, gpu_bytes: int) -> MemoryNeeds:
    """See `WorkerSpec.memory`."""
    return whisper_needs("float16" if options.dtype == "auto" else options.dtype, options.num_beams or 1, facts)


def load(context: LoadContext, options: Options, progress: WindowProgress) -> TransformersWhisperEngine:
    """Download, check and load the model. Raises `ConfigurationError` where it is not a Whisper."""
    import transformers

    assert context.worker.model_ref is not None
    dtype: str = options.dtype
    if dtype == "auto":
        dtype = "float16" if context.device.accelerator == "cuda" else "float32"
    folder = prepare(context.worker.model_ref, context.report, formats=FORMATS, variant_for=dtype)
    if (kind := transformers.PretrainedConfig.get_config_dict(folder)[0].get("model_type")) != "whisper":
        raise ConfigurationError(f"worker {context.worker.id}: {folder} is a model of the type {kind}, not whisper")
    context.wait_for_gpu()
    require_memory(context.device, {"weights": weights_memory_bytes(folder, dtype)})
    model = transformers.WhisperForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, variant=weights_in(folder, dtype).variant
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    model = model.to(torch_device(context.device)).eval()
    generate_options = {} if options.num_beams is None else {"num_beams": options.num_beams}
    return TransformersWhisperEngine(model, tokenizer, extractor, generate_options, progress)


class TransformersWhisperEngine:
    """A `WhisperForConditionalGeneration` with its tokenizer and feature extractor."""

    def __init__(
        self, model: Any, tokenizer: Any, extractor: Any, generate_options: dict[str, Any], progress: WindowProgress
    ) -> None:
        self._model, self._tokenizer, self._extractor = model, tokenizer, extractor
        self._generate_options, self._progress = generate_options, progress
        generation = model.generation_config
        tokens = generation.lang_to_id if getattr(generation, "is_multilingual", False) else {}
        self._languages = {token_id: token.strip("<|>") for token, token_id in tokens.items()}
        self.languages = frozenset(self._languages.values()) or frozenset({"en"})
        self.has_word_timestamps = bool(getattr(generation, "alignment_heads", None))
        self._first_timestamp = generation.no_timestamps_token_id + 1

    def transcribe(self, samples: Samples, params: TranscriptionParams) -> Transcription:
        """See `TranscriptionEngine.transcribe`."""
        speech, to_original = _only_speech(samples) if params.vad_filter else (samples, _unchanged)
        language, probability = self._detect(speech) if params.language is None else (params.language, 1.0)
        options, notes = self._options_for(params, language)
        segments = _on_recording(self._segments(speech, params, language, options), to_original)
        return Transcription(language, probability, segments, notes)

    def _detect(self, samples: Samples) -> tuple[str, float]:
        """The likeliest language, and its probability."""
        import torch

        if not self._languages:
            return "en", 1.0
        self._progress.begin()
        start = torch.tensor([[self._model.generation_config.decoder_start_token_id]], device=self._model.device)
        with torch.inference_mode():
            features = self._features(samples[:WINDOW_SAMPLES])
            logits = self._model(**features, decoder_input_ids=start).logits[0, -1]
        tokens = list(self._languages)
        probability, index = logits[tokens].float().softmax(-1).max(-1)
        return self._languages[tokens[int(index)]], float(probability)

    def _options_for(self, params: TranscriptionParams, language: str) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Arguments of `generate`, and notes about what they leave out."""
        import torch

        notes: tuple[str, ...] = ()
        options = dict(self._generate_options)
        options |= TEMPERATURE_FALLBACK if params.temperature is None else {"temperature": params.temperature}
        if self._languages:
            options |= {"language": language, "task": "translate" if params.translate else "transcribe"}
        if params.prompt is not None:
            marker, *tokens = self._tokenizer.get_prompt_ids(params.prompt).tolist()
            notes = prompt_notes(len(tokens), MAX_PROMPT_TOKENS)
            options["prompt_ids"] = torch.tensor([marker, *tokens[-MAX_PROMPT_TOKENS:]], device=self._model.device)
        return options, notes

    def _features(self, samples: Samples) -> dict[str, Any]:
        features = self._extractor(
            samples, sampling_rate=SAMPLE_RATE, return_tensors="pt", return_attention_mask=True, device="cpu"
        )
        return {
            "input_features": features.input_features.to(self._model.device, self._model.dtype),
            "attention_mask": features.attention_mask.to(self._model.device),
        }

    def _segments(
        self, samples: Samples, params: TranscriptionParams, language: str, options: dict[str, Any]
    ) -> Iterator[Segment]:
        """Segments with times in seconds of `samples`. After a window that ends inside a sentence, the next window
        begins with that sentence, as in OpenAI's reference code."""
        import torch

        position = 0
        while position < len(samples):
            self._progress.begin()
            if (silent := leading_silence(samples[position : position + WINDOW_SAMPLES])) > 0:
                position += silent
                continue
            with torch.inference_mode():
                found = self._model.generate(
                    **self._features(samples[position : position + WINDOW_SAMPLES]),
                    return_timestamps=True,
                    return_segments=True,
                    return_token_timestamps=params.words,
                    force_unique_generate_call=True,
                    **options,
                )["segments"][0]
            offset_s = position / SAMPLE_RATE
            for segment in found:
                tokens = [int(token) for token in segment["tokens"]]
                text = self._tokenizer.decode(tokens, skip_special_tokens=True)
                start, end = (offset_s + float(segment[key]) for key in ("start", "end"))
                if text.strip() and end > start:
                    words = self._words(segment, tokens, language, offset_s, end) if params.words else ()
                    yield Segment(text, start, end, words)
            position += self._advance(found)

    def _advance(self, segments: list[dict[str, Any]]) -> int:
        """Samples to the next window: to the end of the last whole sentence if another sentence begins in this window,
        else a whole window."""
        if segments and (segments[-1]["tokens"][-2:] >= self._first_timestamp).tolist() == [True, True]:
            return int(float(segments[-1]["end"]) * SAMPLE_RATE) or WINDOW_SAMPLES
        return WINDOW_SAMPLES

    def _words(
        self, segment: dict[str, Any], tokens: list[int], language: str, offset_s: float, end: float
    ) -> tuple[Word, ...]:
        from transformers.models.whisper import tokenization_whisper

        text_tokens = [n for n, token in enumerate(tokens) if token < self._tokenizer.eos_token_id]
        times = [offset_s + float(segment["token_timestamps"][n]) for n in text_tokens] + [end]
        words, _, indices = tokenization_whisper._combine_tokens_into_words(
            self._tokenizer, [tokens[n] for n in text_tokens], tokenization_whisper.LANGUAGES.get(language)
        )
        return tuple(
            Word(word, times[index[0]], times[index[-1] + 1]) for word, index in zip(words, indices, strict=True)
        )


def _on_recording(segments: Iterator[Segment], to_original: Callable[[float], float]) -> Iterator[Segment]:
    """Segments with times in seconds of the whole recording."""
    for segment in segments:
        words = tuple(
            Word(word.text, to_original(word.start), to_original(word.end), word.probability) for word in segment.words
        )
        yield Segment(segment.text, to_original(segment.start), to_original(segment.end), words)


def _unchanged(seconds: float) -> float:
    return seconds


def _only_speech(samples: Samples) -> tuple[Samples, Callable[[float], float]]:
    """The parts with speech, concatenated, and a function from their seconds to those of the whole recording."""
    import numpy as np
    from faster_whisper import vad

    parts = vad.get_speech_timestamps(samples)
    if not parts:
        return samples[:0], _unchanged
    speech = np.concatenate([samples[part["start"] : part["end"]] for part in parts])
    return speech, vad.SpeechTimestampsMap(parts, SAMPLE_RATE).get_original_time
