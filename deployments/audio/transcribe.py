"""The audio worker's task `transcribe`: speech to text. Each segment is sent as soon as its window is finished."""

from __future__ import annotations

import asyncio
import io
import random
import threading
import wave
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

from deployments.audio.segment_times import is_silent, within
from deployments.audio.transcription_engine import (
    Segment,
    Transcription,
    TranscriptionEngine,
    TranscriptionParams,
    WindowProgress,
)
from deployments.audio.transcription_request import TranscribeRequest
from deployments.engine_choice import choose_engine, engine_memory_needs
from deployments.media.audio_decoder import AudioDecoder
from deployments.media.audio_files import SAMPLE_RATE
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import InvalidRequest
from rbee_serve.events import Event, Output, Progress
from rbee_serve.outputs import RecordingOutput, SegmentOutput, TimedWord
from rbee_serve.state import MemorySource
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.engine_thread import EngineThread
from rbee_serve.worker.memory import MemoryGauge, memory_gauge
from rbee_serve.worker.narration import narrate
from rbee_serve.worker.request_clock import RequestClock
from rbee_serve.worker.spec import LoadContext, WorkerSpec
from rbee_serve.worker.watchdog import Watchdog

if TYPE_CHECKING:
    from deployments.media.audio_decoder import Samples

ENGINES = {
    "faster-whisper": "deployments.audio.faster_whisper_engine",
    "transformers": "deployments.audio.transformers_whisper_engine",
}
"""Modules by `engine.name`; the first one is the default."""


class TranscribeBackend(InferenceBackend[TranscribeRequest, SegmentOutput | RecordingOutput]):
    """A file decoder and a speech-to-text engine. Requests alternate in the engine's thread, window by window."""

    def __init__(
        self,
        engine: TranscriptionEngine,
        windows: WindowProgress,
        decoder: AudioDecoder,
        watchdog: Watchdog,
        memory: MemoryGauge,
    ) -> None:
        self._engine = engine
        self._windows = windows
        self._decoder = decoder
        self._thread = EngineThread(watchdog)
        self._memory = memory

    async def execute(self, request: TranscribeRequest) -> AsyncGenerator[Event[SegmentOutput | RecordingOutput], None]:
        """A `recording`, then each `segment` with `progress` in seconds, `metrics`, `end`. Raises `InvalidRequest` for
        a file that cannot be decoded, and for a language or timestamps that the model does not support."""
        self._check_supported(request)
        clock = RequestClock()
        samples, notes = await asyncio.to_thread(self._decoder.read, request.audio)
        duration_s, decoding_s = len(samples) / SAMPLE_RATE, clock.seconds
        yield narrate(request, "audio-worker", "transcribe", f"Transcribing {duration_s:.1f} s of sound")
        if is_silent(samples):
            notes = [*notes, "The recording is digital silence, so it has no text"]
        for note in notes:
            yield narrate(request, "audio-worker", "note", note)
        cancelled = threading.Event()
        count = 0
        try:
            async with aclosing(self._thread.iterate(self._transcribe(samples, request, cancelled))) as results:
                async for result in results:
                    if isinstance(result, Transcription):
                        yield Output(_recording(result, duration_s))
                        for note in result.notes:
                            yield narrate(request, "audio-worker", "note", note)
                        continue
                    clock.mark_output()
                    yield Output(_segment(result, count))
                    count += 1
                    yield _progress(result.end, duration_s)
        finally:
            cancelled.set()
        seconds = clock.seconds
        yield _progress(duration_s, duration_s)
        yield narrate(
            request, "audio-worker", "complete", f"Transcribed {duration_s:.1f} s of sound in {seconds:.1f} s"
        )
        metrics = {
            "real_time_factor": round(seconds / duration_s, 4),
            "audio_seconds": round(duration_s, 3),
            "time_to_first_segment_ms": clock.first_output_ms,
            "decode_ms": round(decoding_s * 1000, 1),
        }
        for event in clock.complete(self, metrics, tokens_out=count, seconds=seconds):
            yield event

    def _transcribe(
        self, samples: Samples, request: TranscribeRequest, cancelled: threading.Event
    ) -> Generator[Transcription | Segment, None, None]:
        """Runs in the engine's thread. Other requests run between two items, so `cancelled` is set after each item."""
        self._windows.cancelled = cancelled
        transcription = self._engine.transcribe(samples, _params(request))
        yield transcription
        self._windows.cancelled = cancelled
        if is_silent(samples):
            return
        for segment in within(transcription.segments, samples):
            yield segment
            self._windows.cancelled = cancelled

    def _check_supported(self, request: TranscribeRequest) -> None:
        languages = self._engine.languages
        if languages == {"en"} and (request.translate or request.language not in (None, "en")):
            field = "translate" if request.translate else "language"
            message = "this model supports English only; use a multilingual one"
            raise InvalidRequest.of_field(field, "English only", message)
        if request.language is not None and request.language not in languages:
            known = ", ".join(sorted(languages))
            raise InvalidRequest.of_field("language", f"one of: {known}", "is not a language that this model supports")
        if request.timestamps == "word" and not self._engine.has_word_timestamps:
            raise InvalidRequest.of_field("timestamps", "segment", "this model has no word timestamps; use segment")

    def memory_bytes(self) -> int:
        """Bytes of memory of the replica and its decoder."""
        return self._memory()

    def memory_source(self) -> MemorySource | None:
        """How they were counted."""
        return self._memory.source

    def close(self) -> None:
        """End the decoder's process, and the engine's thread after the current window."""
        self._windows.cancelled.set()
        self._thread.close()
        self._decoder.close()


def _params(request: TranscribeRequest) -> TranscriptionParams:
    return TranscriptionParams(
        language=request.language,
        translate=request.translate,
        prompt=request.prompt,
        temperature=request.temperature,
        words=request.timestamps == "word",
        vad_filter=request.vad_filter,
    )


def _recording(transcription: Transcription, duration_s: float) -> RecordingOutput:
    return RecordingOutput(
        duration=round(duration_s, 3),
        language=transcription.language,
        language_probability=round(transcription.language_probability, 4),
        i=0,
    )


def _segment(segment: Segment, i: int) -> SegmentOutput:
    words = tuple(
        TimedWord(
            t=word.text,
            start=round(word.start, 3),
            end=round(word.end, 3),
            probability=None if word.probability is None else round(word.probability, 4),
        )
        for word in segment.words
    )
    return SegmentOutput(t=segment.text, start=round(segment.start, 3), end=round(segment.end, 3), words=words, i=i)


def _progress(done_s: float, total_s: float) -> Progress:
    total = max(1, round(total_s))
    return Progress(step=min(round(done_s), total), total=total, kind="seconds")


def load(context: LoadContext) -> TranscribeBackend:
    """Load the model into the configured engine."""
    module, options = choose_engine(ENGINES, context.worker)
    windows = WindowProgress(context.watchdog)
    engine: TranscriptionEngine = module.load(context, options, windows)
    decoder = AudioDecoder(options.max_audio_s)
    return TranscribeBackend(engine, windows, decoder, context.watchdog, memory_gauge(context.device))


def check(worker: WorkerConfig) -> None:
    """Check the engine's name and options, and the model's files, before Ray starts."""
    module, options = choose_engine(ENGINES, worker)
    module.check(worker, options)


def wav_file(samples: bytes) -> bytes:
    """A WAV file of 16-bit samples, mono, 16 kHz."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        sound.writeframes(samples)
    return file.getvalue()


def warm_up() -> TranscribeRequest:
    """A second of a very quiet tone: the model is not used on digital silence."""
    return TranscribeRequest(audio=wav_file(b"\x10\0\xf0\xff" * (SAMPLE_RATE // 2)))


def long_request() -> TranscribeRequest:
    """A minute of noise."""
    return TranscribeRequest(audio=wav_file(random.Random(0).randbytes(2 * 60 * SAMPLE_RATE)))  # noqa: S311


SPEC = WorkerSpec(
    name="audio",
    task="transcribe",
    request=TranscribeRequest,
    outputs=(SegmentOutput, RecordingOutput),
    load=load,
    warm_up=warm_up,
    long_request=long_request,
    accelerators=frozenset({"cuda", "cpu"}),
    default_max_ongoing_requests=2,
    modules=("faster_whisper", "av"),
    extra="audio",
    waits_for_gpu=True,
    check=check,
    max_gpus=1,
    memory=partial(engine_memory_needs, ENGINES),
)
