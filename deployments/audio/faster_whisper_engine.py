"""Whisper on CTranslate2 with faster-whisper: the default on CPUs and GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from deployments.audio.cublas import load_cublas
from deployments.audio.segment_times import audible
from deployments.audio.transcription_engine import (
    Segment,
    Transcription,
    TranscriptionOptions,
    TranscriptionParams,
    WindowProgress,
    Word,
    prompt_notes,
)
from deployments.audio.whisper_needs import ctranslate2_needs
from deployments.media.audio_files import SAMPLE_RATE
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.memory_plan.model_facts import ModelFacts
from rbee_serve.memory_plan.needs import MemoryNeeds
from rbee_serve.model_files.memory_check import ctranslate2_memory_bytes, require_memory
from rbee_serve.model_files.resolve import Format, check_local, prepare
from rbee_serve.worker.device import usable_cores
from rbee_serve.worker.spec import Device, LoadContext

if TYPE_CHECKING:
    from deployments.media.audio_decoder import Samples

FORMATS: tuple[Format, ...] = ("ctranslate2",)

MAX_PROMPT_TOKENS = 223
"""Half of Whisper's context, less the token that marks a prompt. The model's own number counts where it differs."""

MAX_BLOCK_FRAMES = 6000
"""Frames of 10 ms in one block of the spectrogram."""


class Options(TranscriptionOptions):
    """Options of `engine: {name: faster-whisper}`, with the names and defaults of faster-whisper."""

    compute_type: Annotated[str, Field(min_length=1)] | None = None
    """CTranslate2's type of the weights in memory; `float16` on a GPU and `int8` on a CPU if left out."""
    beam_size: Annotated[int, Field(ge=1, le=100)] = 5
    """Beams of the search at temperature 0."""
    best_of: Annotated[int, Field(ge=1, le=100)] = 5
    """Samples to choose from at a temperature above 0."""
    patience: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Factor of the beam size that ends the beam search."""
    length_penalty: Annotated[float, Field(ge=-10, le=10)] = 1.0
    """Exponent of the length that divides the score of a beam."""
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Penalty on repeated tokens; more than 1 penalizes."""
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=100)] = 0
    """Length of token sequences that must not repeat; 0 allows all."""
    condition_on_previous_text: bool = True
    """Whether the text of the previous window is the prompt of the next one."""
    compression_ratio_threshold: Annotated[float, Field(gt=0)] | None = 2.4
    """gzip ratio of a text above which the window is retried at a higher temperature."""
    log_prob_threshold: float | None = -1.0
    """Mean log probability of the tokens below which the window is retried at a higher temperature."""
    no_speech_threshold: Annotated[float, Field(ge=0, le=1)] | None = 0.6
    """Probability of no speech above which an unlikely text is dropped."""
    hallucination_silence_threshold: Annotated[float, Field(ge=0)] | None = None
    """Seconds of silence to skip around a text that looks hallucinated; needs word timestamps."""
    hotwords: str | None = None
    """Words to expect in every recording."""


_LOAD_OPTIONS = frozenset({*TranscriptionOptions.model_fields, "compute_type"})
"""Options that are not arguments of `WhisperModel.transcribe`."""


def check(worker: WorkerConfig, options: Options) -> None:
    """See `WorkerSpec.check`."""
    check_local(worker, FORMATS)


def memory_needs(worker: WorkerConfig, options: Options, facts: ModelFacts, gpu_bytes: int) -> MemoryNeeds:
    """See `WorkerSpec.memory`."""
    return ctranslate2_needs(options.compute_type, facts)


def load(context: LoadContext, options: Options, progress: WindowProgress) -> FasterWhisperEngine:
    """Download, check and load the model. Raises `ConfigurationError` where CTranslate2 rejects it or an option, or
    lacks its cuBLAS."""
    on_gpu = context.device.accelerator == "cuda"
    if on_gpu:
        load_cublas()
    from faster_whisper import WhisperModel

    assert context.worker.model_ref is not None
    folder = prepare(context.worker.model_ref, context.report, formats=FORMATS)
    if not (folder / "tokenizer.json").is_file():  # faster-whisper would download the tokenizer of another model
        raise ConfigurationError(f"{folder} lacks tokenizer.json; convert the model with its tokenizer")
    compute_type = options.compute_type or ("float16" if on_gpu else "int8")
    context.wait_for_gpu()
    require_memory(context.device, {"weights": weights_bytes(folder / "model.bin", compute_type, context.device)})

    class WatchedModel(WhisperModel):  # type: ignore[misc]
        """Reports each window. The encoder runs exactly once per window, with or without speech in it."""

        def encode(self, features: Any) -> Any:
            progress.begin()
            return super().encode(features)

    try:
        model = WatchedModel(
            str(folder),
            device="cuda" if on_gpu else "cpu",
            device_index=list(range(len(context.device.ids))),  # numbered within CUDA_VISIBLE_DEVICES
            compute_type=compute_type,
            cpu_threads=context.worker.threads or usable_cores(),
            local_files_only=True,
        )
    except ValueError as exc:
        raise ConfigurationError(f"worker {context.worker.id}: CTranslate2 rejects the model or its options") from exc
    model.feature_extractor = blockwise_features(progress)(**model.feat_kwargs)
    return FasterWhisperEngine(model, options)


def weights_bytes(file: Path, compute_type: str, device: Device) -> int:
    """Bytes of the weights: on GPUs, of which each has a copy, converted; in RAM as stored, since they are read before
    they are converted. CTranslate2 has no limit on GPU memory, so this is all that keeps a model within its share."""
    if device.accelerator != "cuda":
        return file.stat().st_size
    return len(device.ids) * ctranslate2_memory_bytes(file, compute_type)


class FasterWhisperEngine:
    """A `faster_whisper.WhisperModel`."""

    has_word_timestamps = True

    def __init__(self, model: Any, options: Options) -> None:
        self._model = model
        self._options = options.model_dump(exclude=set(_LOAD_OPTIONS))
        self.languages = frozenset(model.supported_languages)

    def transcribe(self, samples: Samples, params: TranscriptionParams) -> Transcription:
        """See `TranscriptionEngine.transcribe`."""
        options = dict(self._options)
        if params.temperature is not None:  # else 0, and the fallback to higher temperatures
            options["temperature"] = params.temperature
        parts = [] if params.vad_filter else audible(samples)
        if parts and parts != [(0.0, len(samples) / SAMPLE_RATE)]:
            options["clip_timestamps"] = [time for part in parts for time in part]
        segments, info = self._model.transcribe(
            samples,
            language=params.language,
            task="translate" if params.translate else "transcribe",
            initial_prompt=params.prompt,
            word_timestamps=params.words,
            vad_filter=params.vad_filter,
            **options,
        )
        notes = self._notes(params.prompt)
        return Transcription(info.language, float(info.language_probability), _segments(segments), notes)

    def _notes(self, prompt: str | None) -> tuple[str, ...]:
        if prompt is None or len(prompt.encode()) < MAX_PROMPT_TOKENS:  # a token has at least one byte
            return ()
        tokens = len(self._model.hf_tokenizer.encode(f" {prompt.strip()}", add_special_tokens=False).ids)
        return prompt_notes(tokens, self._model.max_length // 2 - 1)


def _segments(segments: Iterator[Any]) -> Iterator[Segment]:
    for segment in segments:
        words = tuple(
            Word(word.word, float(word.start), float(word.end), float(word.probability)) for word in segment.words or ()
        )
        yield Segment(segment.text, float(segment.start), float(segment.end), words)


def blockwise_features(progress: WindowProgress) -> Any:
    """A subclass of faster-whisper's `FeatureExtractor` with the same output and a fraction of the memory: the
    original takes 1 MB per second of a recording, all at once."""
    import numpy as np
    from faster_whisper.feature_extractor import FeatureExtractor

    class BlockwiseFeatures(FeatureExtractor):  # type: ignore[misc]
        """The log-mel spectrogram of a whole recording, computed one minute at a time."""

        def __call__(self, waveform: Samples, padding: int = 160, chunk_length: int | None = None) -> Any:
            """As in the base class; Whisper's own models do not use `chunk_length`."""
            size, hop = self.n_fft, self.hop_length
            window = np.hanning(size + 1)[:-1].astype(np.float32)
            padded = np.pad(np.pad(waveform, (0, padding)), size // 2, mode="reflect")
            frames = (len(padded) - size) // hop
            spectrum = np.empty((len(self.mel_filters), frames), np.float32)
            for start in range(0, frames, MAX_BLOCK_FRAMES):
                progress.step()
                end = min(start + MAX_BLOCK_FRAMES, frames)
                part = padded[start * hop : (end - 1) * hop + size]
                fourier = self.stft(part, size, hop, window=window, center=False, return_complex=True)
                power = np.abs(fourier.astype(np.complex64)) ** 2
                spectrum[:, start:end] = np.log10(np.clip(self.mel_filters @ power, 1e-10, None))
            return (np.maximum(spectrum, spectrum.max() - 8.0) + 4.0) / 4.0

    return BlockwiseFeatures
