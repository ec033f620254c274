"""The audio worker's task `transcribe`: a recording in, its text out, a segment as soon as its window is finished."""

from __future__ import annotations

import asyncio
import importlib
import io
import threading
import time
import wave
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from deployments.audio.transcription_engine import TranscriptionEngine, TranscriptionParams, WindowProgress
from deployments.media.audio_decoder import AudioDecoder
from deployments.media.audio_files import SAMPLE_RATE
from rbee_serve import correlation
from rbee_serve.config import WorkerConfig
from rbee_serve.content import FileField
from rbee_serve.errors import ConfigurationError, InvalidRequest
from rbee_serve.events import End, Event, Metrics, Narration, Output, Progress, StopReason
from rbee_serve.model_files.resolve import check_local
from rbee_serve.outputs import RecordingOutput, SegmentOutput
from rbee_serve.request import InferenceRequest
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.engine_thread import EngineThread
from rbee_serve.worker.memory import MemoryGauge, memory_gauge
from rbee_serve.worker.spec import LoadContext, WorkerSpec
from rbee_serve.worker.watchdog import Watchdog

if TYPE_CHECKING:
    from deployments.media.audio_decoder import Samples

ENGINES = {
    "faster-whisper": "deployments.audio.faster_whisper_engine",
    "transformers": "deployments.audio.transformers_whisper_engine",
}
"""Modules by the `name` of the engine in the configuration; the first one is the default."""

MAX_AUDIO_S = 1800.0
"""Seconds of the longest recording, unless `engine.max_audio_s` says otherwise. They take up to 0.5 GB."""


class TranscribeRequest(InferenceRequest):
    """A recording, and how to listen to it."""

    audio: Annotated[bytes, Field(min_length=1, max_length=32 * 2**20, repr=False), FileField("audio")]
    """The file: WAV, FLAC, OGG (Vorbis, Opus) or MP3, of any usual rate and up to 8 channels."""
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")] | None = None
    """What is spoken, as an ISO 639-1 code. Found out if left out."""
    translate: bool = False
    """Whether the text is to be English, whatever is spoken."""
    prompt: Annotated[str | None, Field(min_length=1, max_length=4096, repr=False)] = None
    """Text that could have come before: names and words to expect, and the style."""
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    """0 takes the likeliest text. If left out, a window whose text repeats itself is tried again a little warmer."""
    timestamps: Literal["segment", "word"] = "segment"
    """Whether each word is given its time as well."""
    vad_filter: bool = False
    """Whether parts without speech are cut out first."""

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, prompt: str | None) -> str | None:
        if prompt is not None and "<|" in prompt:  # `<|endoftext|>` and its like steer the model
            raise ValueError("must not hold control tokens, which begin with <|")
        return prompt


class TranscribeBackend(InferenceBackend[TranscribeRequest, SegmentOutput | RecordingOutput]):
    """A decoder for files and an engine for speech. Requests take turns in the engine's thread, a window each."""

    def __init__(
        self,
        engine: TranscriptionEngine,
        windows: WindowProgress,
        decoder: AudioDecoder,
        steps: Watchdog,
        memory: MemoryGauge,
    ) -> None:
        self._engine = engine
        self._windows = windows
        self._decoder = decoder
        self._thread = EngineThread(steps)
        self._memory = memory

    async def execute(self, request: TranscribeRequest) -> AsyncGenerator[Event[SegmentOutput | RecordingOutput], None]:
        """A `recording`, a `segment` for each piece of speech with `progress` in seconds, `metrics`, `end`. Raises
        `InvalidRequest` on a file that cannot be decoded and a language that the model does not know."""
        self._check_language(request)
        began = time.monotonic()
        samples = await asyncio.to_thread(self._decoder.decode, request.audio)
        duration, decoded_s = len(samples) / SAMPLE_RATE, time.monotonic() - began
        yield _narrate(request, "transcribe", f"Listening to {duration:.1f} s of sound")
        left = threading.Event()
        first_s, count = 0.0, 0
        try:
            async with aclosing(self._thread.iterate(self._listen(samples, _wish(request), left))) as outputs:
                async for output in outputs:
                    yield Output(output)
                    if isinstance(output, SegmentOutput):
                        first_s, count = first_s or time.monotonic() - began, count + 1
                        yield _progress(output.end, duration)
        finally:
            left.set()
        seconds = time.monotonic() - began
        yield _progress(duration, duration)
        yield _narrate(request, "complete", f"Transcribed {duration:.1f} s of sound in {seconds:.1f} s")
        yield Metrics(
            {
                "real_time_factor": round(seconds / duration, 4),
                "audio_seconds": round(duration, 3),
                "time_to_first_segment_ms": round((first_s or seconds) * 1000, 1),
                "decode_ms": round(decoded_s * 1000, 1),
                "vram_bytes": self.memory_bytes(),
            }
        )
        yield End(tokens_out=count, decode_time_ms=round(seconds * 1000), stop_reason=StopReason.COMPLETE)

    def _listen(
        self, samples: Samples, wish: TranscriptionParams, left: threading.Event
    ) -> Generator[RecordingOutput | SegmentOutput, None, None]:
        """The work in the engine's thread. Others take turns there between two outputs, so each time it is said whose
        turn it is."""
        self._windows.left = left
        heard = self._engine.transcribe(samples, wish)
        yield RecordingOutput(
            duration=round(len(samples) / SAMPLE_RATE, 3),
            language=heard.language,
            language_probability=round(heard.language_probability, 4),
            i=0,
        )
        self._windows.left = left
        for segment in heard.segments:
            yield segment
            self._windows.left = left

    def _check_language(self, request: TranscribeRequest) -> None:
        known = self._engine.languages
        if known == {"en"} and (request.translate or request.language not in (None, "en")):
            field = "translate" if request.translate else "language"
            raise InvalidRequest.of_field(
                field, "English only", "this model knows English only; use a multilingual one"
            )
        if request.language is not None and request.language not in known:
            raise InvalidRequest.of_field(
                "language", f"one of: {', '.join(sorted(known))}", "is not a language that this model knows"
            )

    def memory_bytes(self) -> int:
        """Bytes that the replica and its decoder hold."""
        return self._memory()

    def close(self) -> None:
        """End the decoder's process; the window that is worked on is the last one."""
        self._windows.left.set()
        self._thread.close()
        self._decoder.close()


def _wish(request: TranscribeRequest) -> TranscriptionParams:
    return TranscriptionParams(
        language=request.language,
        translate=request.translate,
        prompt=request.prompt,
        temperature=request.temperature,
        words=request.timestamps == "word",
        vad_filter=request.vad_filter,
    )


def _progress(done_s: float, total_s: float) -> Progress:
    total = max(1, round(total_s))
    return Progress(step=min(round(done_s), total), total=total, kind="seconds")


def _narrate(request: TranscribeRequest, action: str, human: str) -> Narration:
    return Narration(
        actor="audio-worker",
        action=action,
        target=request.job_id or "request",
        human=human,
        correlation_id=correlation.current(),
        job_id=request.job_id,
    )


def load(context: LoadContext) -> TranscribeBackend:
    """Load the model into the engine that the configuration names."""
    options = dict(context.worker.engine)
    module = importlib.import_module(ENGINES[options.pop("name", next(iter(ENGINES)))])
    decoder = AudioDecoder(float(options.pop("max_audio_s", MAX_AUDIO_S)))
    windows = WindowProgress(context.watchdog)
    engine: TranscriptionEngine = module.load(context, options, windows)
    return TranscribeBackend(engine, windows, decoder, context.watchdog, memory_gauge(context.device))


def check(worker: WorkerConfig) -> None:
    """Look at the engine's name and options, and at the model's files, before anything starts."""
    options = dict(worker.engine)
    name = options.pop("name", next(iter(ENGINES)))
    if name not in ENGINES:
        raise ConfigurationError(f"engine.name: {name!r} is unknown; known are {', '.join(ENGINES)}")
    longest = options.pop("max_audio_s", MAX_AUDIO_S)
    if not isinstance(longest, int | float) or not 1 <= longest <= 86_400:
        raise ConfigurationError("engine.max_audio_s: must be a number from 1 to 86400")
    module = importlib.import_module(ENGINES[name])
    if unknown := sorted(set(options) - module.OPTIONS):
        raise ConfigurationError(
            f"engine.{unknown[0]}: {name} has no such option here; it has {', '.join(sorted(module.OPTIONS))}"
        )
    check_local(worker, module.FORMATS)


def warm_up() -> TranscribeRequest:
    """A second of silence."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(SAMPLE_RATE)
        sound.writeframes(bytes(2 * SAMPLE_RATE))
    return TranscribeRequest(audio=file.getvalue())


SPEC = WorkerSpec(
    name="audio",
    task="transcribe",
    request=TranscribeRequest,
    outputs=(SegmentOutput, RecordingOutput),
    load=load,
    warm_up=warm_up,
    accelerators=frozenset({"cuda", "cpu"}),
    default_max_ongoing_requests=2,
    modules=("faster_whisper", "av"),
    extra="audio",
    check=check,
)
