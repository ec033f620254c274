"""The audio worker's task `generate`: text to speech, or to music and other sounds."""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import AsyncGenerator, Generator, Iterable
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from deployments.audio.encoding import (
    MP3_RATES,
    FileFormat,
    SampleFormat,
    Signal,
    encode_file,
    media_type,
    sample_bytes,
)
from deployments.audio.speech_engine import SpeechEngine, Spoken, SynthesisParams
from deployments.audio.speech_text import is_speakable, spoken_text
from deployments.engine_choice import choose_engine, engine_memory_needs
from deployments.request_fields import Seed
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import InvalidRequest
from rbee_serve.events import Event, Output, Progress, StopReason
from rbee_serve.outputs import AudioChunkOutput
from rbee_serve.request import InferenceRequest
from rbee_serve.result import EncodedResult, Result
from rbee_serve.state import MemorySource
from rbee_serve.validation.parse import violated
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.engine_thread import EngineThread
from rbee_serve.worker.memory import MemoryGauge, memory_gauge
from rbee_serve.worker.narration import narrate
from rbee_serve.worker.request_clock import RequestClock
from rbee_serve.worker.spec import LoadContext, WorkerSpec

if TYPE_CHECKING:
    from deployments.audio.encoding import Samples

ENGINES = {"hibari": "deployments.audio.hibari_engine", "transformers": "deployments.audio.transformers_speech_engine"}
"""Modules by `engine.name`; the first one is the default."""
MAX_CLIPPED = 0.001
"""Part of the samples that may exceed full scale without a note: single peaks are inaudible."""


class SpeechRequest(InferenceRequest):
    """A text, how it should sound, and the format of the audio."""

    prompt: Annotated[str, Field(min_length=1, max_length=32768, repr=False)]
    """The text to speak; for models of music and sounds, a description of the sound."""
    voice: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """A voice of the model. Its first one if left out."""
    speed: Annotated[float, Field(ge=0.25, le=4)] = 1.0
    """Factor of the voice's normal speed."""
    duration: Annotated[float, Field(gt=0, le=600)] = 600.0
    """Seconds after which the audio ends, even if text is left."""
    sample_rate: Annotated[int, Field(ge=8000, le=48000)] | None = None
    """Samples per second; the model's own rate if left out."""
    format: Literal[SampleFormat, FileFormat] | None = None
    """`f32`: numbers in [-1, 1]. `f32le`, `pcm_s16le`: bytes as base64. `wav`, `flac`, `ogg`, `mp3`: a file, for which
    `stream` must be false. If left out: `f32` in a stream, `wav` without one."""
    seed: Seed = None
    """The same seed and request give the same audio. Random if left out; `end` reports it."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if not is_speakable(self.prompt):
            raise violated("prompt", "speakable", "has no letter and no digit, so there is nothing to speak")
        if self.stream and self.as_file:
            raise violated("format", "stream: false", f"{self.format} is a file, which needs stream to be false")
        if self.format == "mp3" and self.sample_rate is not None and self.sample_rate not in MP3_RATES:
            rates = ", ".join(map(str, sorted(MP3_RATES)))
            raise violated("sample_rate", f"one of: {rates}", f"an mp3 has one of the rates {rates}")
        return self

    @property
    def as_file(self) -> FileFormat | None:
        """The requested file format; None for samples."""
        match self.format:
            case "wav" | "flac" | "ogg" | "mp3":
                return self.format
            case None if not self.stream:
                return "wav"
        return None

    @property
    def samples_as(self) -> SampleFormat:
        """The format of the samples in each output, also of those that are encoded as a file later."""
        match self.format:
            case "f32" | "f32le" | "pcm_s16le":
                return self.format
        return "f32le" if self.as_file else "f32"


class SpeechBackend(InferenceBackend[SpeechRequest, AudioChunkOutput]):
    """An engine in its own thread."""

    def __init__(self, engine: SpeechEngine, thread: EngineThread, memory: MemoryGauge) -> None:
        self._engine = engine
        self._thread = thread
        self._memory = memory

    async def execute(self, request: SpeechRequest) -> AsyncGenerator[Event[AudioChunkOutput], None]:
        """`audio` chunks of one continuous signal, `progress` by sentences, `metrics`, `end`. Raises `InvalidRequest`
        for a voice or speed that the model does not have."""
        self._check_supported(request)
        human = f"Generating audio from {len(request.prompt)} characters"
        yield narrate(request, "audio-worker", "generate", human)
        clock = RequestClock()
        rate = request.sample_rate or self._engine.sample_rate
        seed = secrets.randbits(32) if request.seed is None else request.seed
        signal = Signal(self._engine.sample_rate, rate, request.duration)
        cancelled = threading.Event()
        count, spoken = 0, Spoken()
        try:
            work = self._synthesize(request, signal, seed, spoken, cancelled)
            async with aclosing(self._thread.iterate(work)) as parts:
                async for part in parts:
                    for event in part:
                        if isinstance(event, Output):
                            clock.mark_output()
                            count += 1
                        yield event
        finally:
            cancelled.set()
        if not count:
            raise InvalidRequest.of_field("prompt", "speakable", "holds nothing that this voice can speak")
        seconds, audio_s = clock.seconds, signal.samples / rate
        notes = [*spoken.notes(signal.left_out / rate)]
        if signal.clipped > MAX_CLIPPED * signal.samples:
            notes.append(f"{signal.clipped} samples were louder than full scale and are clipped")
        max_s = self._engine.max_s
        if max_s is not None and "duration" in request.model_fields_set and request.duration > max_s:
            notes.append(f"This model generates at most {max_s:g} seconds")
        for note in notes:
            yield narrate(request, "audio-worker", "note", note)
        metrics = {
            "audio_seconds": round(audio_s, 3),
            "real_time_factor": round(seconds / audio_s, 4),
            "time_to_first_audio_ms": clock.first_output_ms,
        }
        stop_reason = StopReason.MAX_TOKENS if signal.full else StopReason.COMPLETE
        for event in clock.complete(
            self, metrics, tokens_out=count, seconds=seconds, stop_reason=stop_reason, seed=seed
        ):
            yield event

    def _synthesize(
        self, request: SpeechRequest, signal: Signal, seed: int, spoken: Spoken, cancelled: threading.Event
    ) -> Generator[list[Event[AudioChunkOutput]], None, None]:
        """Runs in the engine's thread. Yields the events of one piece of audio at a time."""
        params = SynthesisParams(
            prompt=spoken_text(request.prompt),
            voice=request.voice,
            speed=request.speed,
            seed=seed,
            max_s=request.duration,
            low_latency=request.stream,
            cancelled=cancelled.is_set,
        )
        index = itertools.count()

        def outputs(chunks: Iterable[Samples]) -> list[Event[AudioChunkOutput]]:
            return [Output(audio_chunk(chunk, signal.rate, request.samples_as, next(index))) for chunk in chunks]

        for piece in self._engine.synthesize(params):
            events = outputs(signal.feed(piece.samples))
            if spoken.add(piece):
                events.append(Progress(step=piece.done, total=piece.total))
            yield events
            if signal.full:
                return
        yield outputs(signal.flush())

    def _check_supported(self, request: SpeechRequest) -> None:
        voices = self._engine.voices
        if request.voice is not None and request.voice not in voices:
            known = ", ".join(voices)
            one_voice = "this model has one voice without a name; leave it out"
            message = f"unknown voice; known are {known}" if known else one_voice
            raise InvalidRequest.of_field("voice", f"one of: {known}", message)
        if request.speed != 1 and not self._engine.has_speed:
            raise InvalidRequest.of_field("speed", "1", "this model has one speed; leave it out")

    def memory_bytes(self) -> int:
        """Bytes of memory of the process, on the device if it has memory of its own."""
        return self._memory()

    def memory_source(self) -> MemorySource | None:
        """How they were counted."""
        return self._memory.source

    def close(self) -> None:
        """End the engine's thread."""
        self._thread.close()


def audio_chunk(samples: Samples, rate: int, form: SampleFormat, i: int) -> AudioChunkOutput:
    """The `i`-th output of a stream."""
    encoding = None if form == "f32" else form
    return AudioChunkOutput(samples=sample_bytes(samples, form), sample_rate=rate, encoding=encoding, i=i)


def load(context: LoadContext) -> SpeechBackend:
    """Load the configured engine."""
    module, options = choose_engine(ENGINES, context.worker)
    return SpeechBackend(module.load(context, options), EngineThread(context.watchdog), memory_gauge(context.device))


def check(worker: WorkerConfig) -> None:
    """Check the engine's name and options, and the model's files if it has any, before Ray starts."""
    module, options = choose_engine(ENGINES, worker)
    module.check(worker, options)


def encode_result(request: SpeechRequest, result: Result) -> EncodedResult | None:
    """The requested file; None where samples were requested."""
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
    long_request=lambda: SpeechRequest(prompt="The quick brown fox jumps over the lazy dog. " * 700),
    accelerators=frozenset({"cuda", "cpu"}),
    default_max_ongoing_requests=4,
    needs_model=False,
    modules=("numpy", "soundfile", "soxr"),
    extra="audio",
    waits_for_gpu=True,
    check=check,
    encode_result=encode_result,
    max_gpus=1,
    memory=partial(engine_memory_needs, ENGINES),
)
