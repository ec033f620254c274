"""The backend base of the vision worker's tasks `classify` and `embed`."""

from __future__ import annotations

from typing import TypeVar

from deployments.vision.image_model import ImageModel
from rbee_serve.events import End, Metrics
from rbee_serve.outputs import OutputValue
from rbee_serve.request import InferenceRequest
from rbee_serve.state import MemorySource
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.memory import MemoryGauge
from rbee_serve.worker.request_clock import RequestClock

RequestT = TypeVar("RequestT", bound=InferenceRequest)
OutputT = TypeVar("OutputT", bound=OutputValue)


class VisionBackend(InferenceBackend[RequestT, OutputT]):
    """A model, and what its tasks have in common."""

    def __init__(self, model: ImageModel, memory: MemoryGauge) -> None:
        self._model = model
        self._memory = memory

    def _completed(self, clock: RequestClock, decode_ms: float, tokens_out: int) -> tuple[Metrics, End]:
        """The last two events of a request whose file was decoded after `decode_ms`."""
        seconds = clock.seconds
        metrics = {"images_per_sec": round(1 / seconds, 2), "decode_ms": decode_ms}
        return clock.complete(self, metrics, tokens_out=tokens_out, seconds=seconds)

    def memory_bytes(self) -> int:
        """Bytes that the replica and its decoders hold."""
        return self._memory()

    def memory_source(self) -> MemorySource | None:
        """How they were counted."""
        return self._memory.source

    def close(self) -> None:
        """Free the model and end the decoders."""
        self._model.close()
