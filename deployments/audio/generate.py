"""The audio worker's task `generate`: speech, or any sound, from a text."""

from __future__ import annotations

import importlib
import itertools
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Generator, Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from deployments.audio.encoding import MP3_RATES, FileFormat, SampleFormat, Signal, chunk, encode_file, media_type
from deployments.audio.speech_engine import SpeechEngine, SynthesisParams
from rbee_serve import correlation
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError, InvalidRequest
from rbee_serve.events import End, Event, Metrics, Narration, Output, Progress, StopReason
from rbee_serve.outputs import AudioChunkOutput
from rbee_serve.request import InferenceRequest
from rbee_serve.result import EncodedResult, Result
from rbee_serve.validation.parse import violated
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.engine_thread import EngineThread
from rbee_serve.worker.memory import MemoryGauge, memory_gauge
from rbee_serve.worker.spec import LoadContext, WorkerSpec

if TYPE_CHECKING:
    from deployments.audio.speech_engine import Samples

ENGINES = {"hibari": "deployments.audio.hibari_engine", "transformers": "deployments.audio.transformers_speech_engine"}
"""The modules of the engines, by `engine.name`; the first is the default."""


class SpeechRequest(InferenceRequest):
    """A text, how it is to sound, and how the sound is to be sent."""

    prompt: Annotated[str, Field(min_length=1, max_length=32768, repr=False)]
    """What is to be said; or, for models that make other sounds, a description of them."""
    voice: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Who speaks: a voice of the model. Its first one if left out."""
    speed: Annotated[float, Field(ge=0.25, le=4)] = 1.0
    """How fast, where 1 is the voice's own pace."""
    duration: Annotated[float, Field(gt=0, le=600)] = 600.0
    """Seconds after which the sound ends, whatever is left to say."""
    sample_rate: Annotated[int, Field(ge=8000, le=48000)] | None = None
    """Samples per second; the model's own number if left out."""
    format: Literal[SampleFormat, FileFormat] | None = None
    """`f32`: numbers in [-1, 1]. `f32le`, `pcm_s16le`: bytes as base64. `wav`, `flac`, `ogg`, `mp3`: a file, for which
    `stream` must be false. If left out: `f32` in a stream, `wav` without one."""
    seed: Annotated[int, Field(ge=0, le=2**64 - 1)] | None = None
    """The same seed and request give the same sound. Made up, and told at the end, if left out."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if not any(map(str.isalnum, self.prompt)):
            raise violated("prompt", "speakable", "has neither a letter nor a digit, so there is nothing to say")
        if self.stream and self.as_file:
            raise violated("format", "stream: false", f"{self.format} is a file, which needs stream to be false")
        if self.format == "mp3" and self.sample_rate is not None and self.sample_rate not in MP3_RATES:
            rates = ", ".join(map(str, sorted(MP3_RATES)))
            raise violated("sample_rate", f"one of: {rates}", f"an mp3 has one of the rates {rates}")
        return self

    @property
    def as_file(self) -> FileFormat | None:
        """The kind of file that is wanted, if one is."""
        match self.format:
            case "wav" | "flac" | "ogg" | "mp3":
                return self.format
            case None if not self.stream:
                return "wav"
        return None

    @property
    def samples_as(self) -> SampleFormat:
        """The form of the samples in each output; of those that become a file too."""
        match self.format:
            case "f32" | "f32le" | "pcm_s16le":
                return self.format
        return "f32le" if self.as_file else "f32"


class SpeechBackend(InferenceBackend[SpeechRequest, AudioChunkOutput]):
    """An engine in its thread."""

    def __init__(self, engine: SpeechEngine, thread: EngineThread, memory: MemoryGauge) -> None:
        self._engine = engine
        self._thread = thread
        self._memory = memory

    async def execute(self, request: SpeechRequest) -> AsyncGenerator[Event[AudioChunkOutput], None]:
        """`audio` chunks of one continuous signal, `progress` by sentences, `metrics`, `end`. Raises `InvalidRequest`
        for a voice or speed that the model does not have."""
        self._check(request)
        yield self._narrate(request)
        began = time.monotonic()
        rate = request.sample_rate or self._engine.sample_rate
        seed = secrets.randbits(32) if request.seed is None else request.seed
        signal = Signal(self._engine.sample_rate, rate, request.duration)
        left = threading.Event()
        first_s: float | None = None
        count = 0
        try:
            async with aclosing(self._thread.iterate(self._work(request, signal, seed, left))) as pieces:
                async for events in pieces:
                    for event in events:
                        if isinstance(event, Output):
                            first_s = first_s or time.monotonic() - began
                            count += 1
                        yield event
        finally:
            left.set()
        if first_s is None:
            raise InvalidRequest.of_field("prompt", "speakable", "holds nothing that this voice can say")
        seconds = time.monotonic() - began
        audio_s = signal.samples / rate
        yield Metrics(
            {
                "audio_seconds": round(audio_s, 3),
                "real_time_factor": round(seconds / audio_s, 4),
                "time_to_first_audio_ms": round(first_s * 1000, 1),
                "vram_bytes": self.memory_bytes(),
            }
        )
        yield End(
            tokens_out=count,
            decode_time_ms=round(seconds * 1000),
            stop_reason=StopReason.MAX_TOKENS if signal.full else StopReason.COMPLETE,
            seed=seed,
        )

    def _work(
        self, request: SpeechRequest, signal: Signal, seed: int, left: threading.Event
    ) -> Generator[list[Event[AudioChunkOutput]], None, None]:
        """What the engine's thread does for a request: the events of one piece after another."""
        order = SynthesisParams(
            prompt=request.prompt,
            voice=request.voice,
            speed=request.speed,
            seed=seed,
            most_s=request.duration,
            low_latency=request.stream,
            cancelled=left.is_set,
        )
        count = itertools.count()

        def outputs(chunks: Iterable[Samples]) -> list[Event[AudioChunkOutput]]:
            return [Output(chunk(samples, signal.rate, request.samples_as, next(count))) for samples in chunks]

        said = 0
        for piece in self._engine.speak(order):
            events = outputs(signal.feed(piece.samples))
            if piece.done > said:
                said = piece.done
                events.append(Progress(step=said, total=piece.total))
            yield events
            if signal.full:
                return
        yield outputs(signal.rest())

    def _check(self, request: SpeechRequest) -> None:
        voices = self._engine.voices
        if request.voice is not None and request.voice not in voices:
            known = ", ".join(voices)
            told = f"no such voice; known are {known}" if known else "this model has one voice and no name for it"
            raise InvalidRequest.of_field("voice", f"one of: {known}", told)
        if request.speed != 1 and not self._engine.has_speed:
            raise InvalidRequest.of_field("speed", "1", "this model has one speed; leave it out")

    def _narrate(self, request: SpeechRequest) -> Narration:
        return Narration(
            actor="audio-worker",
            action="generate",
            target=request.job_id or "request",
            human=f"Making sound of {len(request.prompt)} characters",
            correlation_id=correlation.current(),
            job_id=request.job_id,
        )

    def memory_bytes(self) -> int:
        """Bytes that the process holds, on the device where there is one."""
        return self._memory()

    def close(self) -> None:
        """End the engine's thread."""
        self._thread.close()


def _engine_module(worker: WorkerConfig) -> Any:
    name = worker.engine.get("name", next(iter(ENGINES)))
    if name not in ENGINES:
        raise ConfigurationError(f"engine.name: {name!r} is none of {', '.join(ENGINES)}")
    return importlib.import_module(ENGINES[name])


def load(context: LoadContext) -> SpeechBackend:
    """Load the configured engine."""
    module = _engine_module(context.worker)
    return SpeechBackend(module.load(context), EngineThread(context.watchdog), memory_gauge(context.device))


def check(worker: WorkerConfig) -> None:
    """Look at the engine's options and, where it has them, the model's files before anything starts."""
    _engine_module(worker).check(worker)


def encode_result(request: SpeechRequest, result: Result) -> EncodedResult | None:
    """The file that was asked for."""
    form = request.as_file
    if form is None:
        return None
    parts = [value.samples for value in result.outputs if isinstance(value, AudioChunkOutput)]
    data = encode_file((part for part in parts if isinstance(part, bytes)), result.output["sample_rate"], form)
    return EncodedResult(data, media_type(form))


SPEC = WorkerSpec(
    name="audio",
    task="generate",
    request=SpeechRequest,
    outputs=(AudioChunkOutput,),
    load=load,
    warm_up=lambda: SpeechRequest(prompt="Hello.", format="f32"),
    accelerators=frozenset({"cuda", "cpu"}),
    default_max_ongoing_requests=4,
    needs_model=False,
    modules=("numpy", "soundfile", "soxr"),
    extra="audio",
    check=check,
    encode_result=encode_result,
)
