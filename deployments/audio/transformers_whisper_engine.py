"""Whisper on PyTorch, by transformers: for GPUs, and for models that exist as safetensors only."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from deployments.audio.transcription_engine import Transcription, TranscriptionParams, WindowProgress
from deployments.media.audio_files import SAMPLE_RATE
from deployments.torch_runtime.device import torch_device
from rbee_serve.errors import ConfigurationError, InvalidRequest
from rbee_serve.model_files.memory_check import require_memory, weights_memory_bytes
from rbee_serve.model_files.resolve import Format, prepare
from rbee_serve.outputs import SegmentOutput, TimedWord
from rbee_serve.worker.spec import LoadContext

if TYPE_CHECKING:
    from deployments.media.audio_decoder import Samples

FORMATS: tuple[Format, ...] = ("safetensors",)
DTYPES = ("float16", "bfloat16", "float32")
OPTIONS = frozenset({"dtype", "num_beams"})
"""Options of the configuration, by transformers' names."""

WINDOW = 30 * SAMPLE_RATE
"""Samples that Whisper listens to at once."""
PROMPT_TOKENS = 223
"""Half of Whisper's context, less its marker."""
WARMER: dict[str, Any] = {
    "temperature": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "compression_ratio_threshold": 1.35,
    "logprob_threshold": -1.0,
    "no_speech_threshold": 0.6,
}
"""A window is tried again a little warmer where its text repeats itself or is unlikely; transformers' own numbers."""


class TransformersWhisper:
    """A `WhisperForConditionalGeneration` with its tokenizer and feature extractor."""

    def __init__(
        self, model: Any, tokenizer: Any, extractor: Any, options: dict[str, Any], windows: WindowProgress
    ) -> None:
        self._torch: Any = importlib.import_module("torch")
        self._model, self._tokenizer, self._extractor = model, tokenizer, extractor
        self._options, self._windows = options, windows
        generation = model.generation_config
        known = generation.lang_to_id if getattr(generation, "is_multilingual", False) else {}
        self._languages = {number: token.strip("<|>") for token, number in known.items()}
        self.languages = frozenset(self._languages.values()) or frozenset({"en"})
        self._first_timestamp = generation.no_timestamps_token_id + 1
        self._aligned = bool(getattr(generation, "alignment_heads", None))

    def transcribe(self, samples: Samples, wish: TranscriptionParams) -> Transcription:
        """Begin to listen. A window is worked on when the segments before it are used up."""
        if wish.words and not self._aligned:
            raise InvalidRequest.of_field("timestamps", "segment", "this model cannot tell the time of a word")
        speech, original = _speech_of(samples) if wish.vad_filter else (samples, _same)
        language, probability = self._language(speech) if wish.language is None else (wish.language, 1.0)
        options = self._options_of(wish, language)
        windows = self._windows_of(speech, wish, language, options)
        return Transcription(language, probability, _numbered(windows, original, len(samples) / SAMPLE_RATE))

    def _language(self, samples: Samples) -> tuple[str, float]:
        if not self._languages:
            return "en", 1.0
        self._windows.begin()
        start = self._torch.tensor([[self._model.generation_config.decoder_start_token_id]], device=self._model.device)
        with self._torch.inference_mode():
            logits = self._model(**self._features(samples[:WINDOW]), decoder_input_ids=start).logits[0, -1]
        tokens = list(self._languages)
        probability, index = logits[tokens].float().softmax(-1).max(-1)
        return self._languages[tokens[int(index)]], float(probability)

    def _options_of(self, wish: TranscriptionParams, language: str) -> dict[str, Any]:
        options = dict(self._options)
        options |= WARMER if wish.temperature is None else {"temperature": wish.temperature}
        if self._languages:
            options |= {"language": language, "task": "translate" if wish.translate else "transcribe"}
        if wish.prompt is not None:
            marker, *tokens = self._tokenizer.get_prompt_ids(wish.prompt).tolist()
            options["prompt_ids"] = self._torch.tensor([marker, *tokens[-PROMPT_TOKENS:]], device=self._model.device)
        return options

    def _features(self, samples: Samples) -> dict[str, Any]:
        found = self._extractor(
            samples, sampling_rate=SAMPLE_RATE, return_tensors="pt", return_attention_mask=True, device="cpu"
        )
        return {
            "input_features": found.input_features.to(self._model.device, self._model.dtype),
            "attention_mask": found.attention_mask.to(self._model.device),
        }

    def _windows_of(
        self, samples: Samples, wish: TranscriptionParams, language: str, options: dict[str, Any]
    ) -> Iterator[SegmentOutput]:
        """Segments in seconds of `samples`. A window that ends within a sentence is followed by one that begins with
        that sentence, as in OpenAI's own code."""
        at = 0
        while at < len(samples):
            self._windows.begin()
            with self._torch.inference_mode():
                found = self._model.generate(
                    **self._features(samples[at : at + WINDOW]),
                    return_timestamps=True,
                    return_segments=True,
                    return_token_timestamps=wish.words,
                    force_unique_generate_call=True,
                    **options,
                )["segments"][0]
            offset = at / SAMPLE_RATE
            for segment in found:
                tokens = [int(token) for token in segment["tokens"]]
                text = self._tokenizer.decode(tokens, skip_special_tokens=True)
                start, end = (offset + float(segment[side]) for side in ("start", "end"))
                if text.strip() and end > start:
                    words = self._words(segment, tokens, language, offset, end) if wish.words else ()
                    yield SegmentOutput(t=text, start=start, end=end, words=words, i=0)
            at += self._step(found)

    def _step(self, found: list[dict[str, Any]]) -> int:
        """Samples to go on by: to where the last whole sentence ends, if Whisper says that another one has begun."""
        if found and (found[-1]["tokens"][-2:] >= self._first_timestamp).tolist() == [True, True]:
            return int(float(found[-1]["end"]) * SAMPLE_RATE) or WINDOW
        return WINDOW

    def _words(
        self, segment: dict[str, Any], tokens: list[int], language: str, offset: float, end: float
    ) -> tuple[TimedWord, ...]:
        terms: Any = importlib.import_module("transformers.models.whisper.tokenization_whisper")
        said = [n for n, token in enumerate(tokens) if token < self._tokenizer.eos_token_id]
        times = [offset + float(segment["token_timestamps"][n]) for n in said] + [end]
        words, _, places = terms._combine_tokens_into_words(
            self._tokenizer, [tokens[n] for n in said], terms.LANGUAGES.get(language)
        )
        return tuple(
            TimedWord(t=word, start=round(times[place[0]], 3), end=round(times[place[-1] + 1], 3))
            for word, place in zip(words, places, strict=True)
        )


def _numbered(
    segments: Iterator[SegmentOutput], original: Callable[[float], float], duration: float
) -> Iterator[SegmentOutput]:
    """Segments by their number, in seconds of the recording."""

    def when(seconds: float) -> float:
        return round(min(original(seconds), duration), 3)

    for i, found in enumerate(segments):
        words = tuple(
            TimedWord(t=word.t, start=when(word.start), end=when(word.end), probability=word.probability)
            for word in found.words
        )
        yield SegmentOutput(t=found.t, start=when(found.start), end=when(found.end), words=words, i=i)


def _same(seconds: float) -> float:
    return seconds


def _speech_of(samples: Samples) -> tuple[Samples, Callable[[float], float]]:
    """The parts with speech, put together, and where in the whole a second of them is."""
    vad: Any = importlib.import_module("faster_whisper.vad")
    parts = vad.get_speech_timestamps(samples)
    if not parts:
        return samples[:0], _same
    speech = importlib.import_module("numpy").concatenate([samples[part["start"] : part["end"]] for part in parts])
    return speech, vad.SpeechTimestampsMap(parts, SAMPLE_RATE).get_original_time


def load(context: LoadContext, options: dict[str, Any], windows: WindowProgress) -> TransformersWhisper:
    """Fetch and check the model, and load it. Raises `ConfigurationError` where it is no Whisper."""
    assert context.worker.model_ref is not None
    on_gpu = context.device.accelerator == "cuda"
    dtype = options.pop("dtype", "float16" if on_gpu else "float32")
    if dtype not in DTYPES:
        raise ConfigurationError(f"worker {context.worker.id}: engine.dtype is one of {', '.join(DTYPES)}")
    folder = prepare(context.worker.model_ref, context.report, formats=FORMATS)
    require_memory(context.device, {"weights": weights_memory_bytes(folder, dtype)}, context.device.fraction)
    transformers: Any = importlib.import_module("transformers")
    if (kind := transformers.PretrainedConfig.get_config_dict(folder)[0].get("model_type")) != "whisper":
        raise ConfigurationError(f"worker {context.worker.id}: {folder} is a model of the type {kind}, not whisper")
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    model = model.to(torch_device(context.device)).eval()
    return TransformersWhisper(model, tokenizer, extractor, options, windows)
