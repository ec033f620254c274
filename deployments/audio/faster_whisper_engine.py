"""Whisper on CTranslate2, by faster-whisper: the default on CPUs and GPUs."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from deployments.audio.transcription_engine import Transcription, TranscriptionParams, WindowProgress
from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.memory_check import require_memory
from rbee_serve.model_files.resolve import Format, prepare
from rbee_serve.outputs import SegmentOutput, TimedWord
from rbee_serve.worker.device import usable_cores
from rbee_serve.worker.spec import LoadContext

if TYPE_CHECKING:
    from deployments.media.audio_decoder import Samples

FORMATS: tuple[Format, ...] = ("ctranslate2",)
OPTIONS = frozenset(
    "compute_type beam_size best_of patience length_penalty repetition_penalty no_repeat_ngram_size "
    "condition_on_previous_text compression_ratio_threshold log_prob_threshold no_speech_threshold "
    "hallucination_silence_threshold hotwords".split()
)
"""Options of the configuration, by faster-whisper's names."""

BLOCK_FRAMES = 6000
"""Frames of 10 ms whose spectrum is made at once."""


class FasterWhisper:
    """A `faster_whisper.WhisperModel`. `options` are defaults for its `transcribe`."""

    def __init__(self, model: Any, options: dict[str, Any]) -> None:
        self._model = model
        self._options = options
        self.languages = frozenset(model.supported_languages)

    def transcribe(self, samples: Samples, wish: TranscriptionParams) -> Transcription:
        """Begin to listen. A window is worked on when the segments before it are used up."""
        options = dict(self._options)
        if wish.temperature is not None:  # else 0, and warmer where the model repeats itself
            options["temperature"] = wish.temperature
        segments, info = self._model.transcribe(
            samples,
            language=wish.language,
            task="translate" if wish.translate else "transcribe",
            initial_prompt=wish.prompt,
            word_timestamps=wish.words,
            vad_filter=wish.vad_filter,
            **options,
        )
        return Transcription(info.language, float(info.language_probability), _outputs(segments))


def _outputs(segments: Iterator[Any]) -> Iterator[SegmentOutput]:
    for i, segment in enumerate(segments):
        words = tuple(
            TimedWord(
                t=word.word, start=_s(word.start), end=_s(word.end), probability=round(float(word.probability), 4)
            )
            for word in segment.words or ()
        )
        yield SegmentOutput(t=segment.text, start=_s(segment.start), end=_s(segment.end), words=words, i=i)


def _s(seconds: float) -> float:
    return round(float(seconds), 3)


def load(context: LoadContext, options: dict[str, Any], windows: WindowProgress) -> FasterWhisper:
    """Fetch and check the model, and load it. Raises `ConfigurationError` where it, or an option, is not taken."""
    assert context.worker.model_ref is not None
    folder = prepare(context.worker.model_ref, context.report, formats=FORMATS)
    if not (folder / "tokenizer.json").is_file():  # faster-whisper would fetch some other model's
        raise ConfigurationError(f"{folder} lacks tokenizer.json; convert the model with its tokenizer")
    require_memory(context.device, {"weights": (folder / "model.bin").stat().st_size}, context.device.fraction)
    on_gpu = context.device.accelerator == "cuda"
    try:
        model = watched_model(windows)(
            str(folder),
            device="cuda" if on_gpu else "cpu",
            device_index=list(range(len(context.device.indices))),  # as CUDA_VISIBLE_DEVICES numbers them
            compute_type=options.pop("compute_type", "float16" if on_gpu else "int8"),
            cpu_threads=context.worker.threads or usable_cores(),
            local_files_only=True,
        )
    except ValueError as exc:
        raise ConfigurationError(f"worker {context.worker.id}: CTranslate2 refuses the model or its options") from exc
    model.feature_extractor = blockwise_features(windows)(**model.feat_kwargs)
    return FasterWhisper(model, options)


def watched_model(windows: WindowProgress) -> Any:
    """`WhisperModel`, which tells when it begins a window: it encodes each one once, be there speech in it or not."""
    base: Any = importlib.import_module("faster_whisper").WhisperModel

    class WatchedModel(base):  # type: ignore[misc]
        """Says when a window begins."""

        def encode(self, features: Any) -> Any:
            windows.begin()
            return super().encode(features)

    return WatchedModel


def blockwise_features(windows: WindowProgress) -> Any:
    """`FeatureExtractor`, with the same numbers from a fraction of the memory: the original takes 1 MB for each second
    of a recording, all at once."""
    base: Any = importlib.import_module("faster_whisper.feature_extractor").FeatureExtractor
    np: Any = importlib.import_module("numpy")

    class BlockwiseFeatures(base):  # type: ignore[misc]
        """The log-mel spectrogram of a whole recording, made a minute at a time."""

        def __call__(self, waveform: Samples, padding: int = 160, chunk_length: int | None = None) -> Any:
            """As in the base class; `chunk_length` is not used by Whisper's own models."""
            size, hop = self.n_fft, self.hop_length
            window = np.hanning(size + 1)[:-1].astype(np.float32)
            padded = np.pad(np.pad(waveform, (0, padding)), size // 2, mode="reflect")
            frames = (len(padded) - size) // hop
            spectrum = np.empty((len(self.mel_filters), frames), np.float32)
            for at in range(0, frames, BLOCK_FRAMES):
                windows.step()
                until = min(at + BLOCK_FRAMES, frames)
                part = padded[at * hop : (until - 1) * hop + size]
                fourier = self.stft(part, size, hop, window=window, center=False, return_complex=True)
                power = np.abs(fourier.astype(np.complex64)) ** 2
                spectrum[:, at:until] = np.log10(np.clip(self.mel_filters @ power, 1e-10, None))
            return (np.maximum(spectrum, spectrum.max() - 8.0) + 4.0) / 4.0

    return BlockwiseFeatures
