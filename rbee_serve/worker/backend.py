"""The interface of a loaded model: what a new model family implements."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rbee_serve.errors import ConfigurationError
from rbee_serve.events import Event
from rbee_serve.outputs import OutputValue
from rbee_serve.request import InferenceRequest
from rbee_serve.state import MemorySource

RequestT_contra = TypeVar("RequestT_contra", bound=InferenceRequest, contravariant=True)
OutputT = TypeVar("OutputT", bound=OutputValue)


class InferenceBackend(Protocol[RequestT_contra, OutputT]):
    """A loaded model that executes requests.

    It is used from one event loop and runs without Ray. Subclass it for the defaults of `is_healthy`, `is_ready` and
    `close`; `BlockingBackend` is the simpler base where the model is blocking code.
    """

    if not TYPE_CHECKING:

        def __new__(cls, *arguments: Any, **options: Any) -> Any:
            """Raise `ConfigurationError` where a method is missing, so that the operator reads one sentence."""
            if missing := ", ".join(sorted(cls.__abstractmethods__)):
                raise ConfigurationError(f"the backend {cls.__module__}.{cls.__qualname__} must define {missing}")
            return super().__new__(cls)

    @abstractmethod
    def execute(self, request: RequestT_contra) -> AsyncIterator[Event[OutputT]]:
        """Execute one request: any number of `Output`, `Progress`, `Metrics` and `Narration`, then one `End`.

        `Started`, `Error` and the final marker are added by the library, which also enforces the order. A failure is
        raised: the client receives a `WorkerError` as it is, and any other exception as `INTERNAL`, with the details in
        the log only. An error raised before the first event is a refusal and becomes an HTTP status. `started` is sent
        with the first event, so yield a `Narration` or `Progress` as soon as the request is accepted.

        A disconnect closes the iterator: stop the work in `finally`. Nothing here may block the event loop; model code
        belongs in a thread or a process.
        """
        ...

    def is_healthy(self) -> bool:
        """False if only a new process can help. Must not block. Whether the engine makes progress is watched by the
        library (`LoadContext.watchdog`)."""
        return True

    def why_unhealthy(self) -> str | None:
        """Why `is_healthy` is False, such as `its engine ran out of memory`: a clause for operators that every client
        may read, without the text of a foreign exception. None if that is unknown. Must not block."""
        return None

    def is_ready(self) -> bool:
        """True once requests can be executed. Must not block."""
        return True

    @abstractmethod
    def memory_bytes(self) -> int:
        """Bytes of device memory (VRAM, or RAM on a CPU) that the model holds. Must not block."""
        ...

    def memory_source(self) -> MemorySource | None:
        """How `memory_bytes` were counted (`MemoryGauge.source`); None if that is unknown. Must not block."""
        return None

    def engine_requests(self) -> int | None:
        """Requests that the engine itself holds, by its own count; None if it has no count. Must not block."""
        return None

    def close(self) -> None:
        """Free the model and end every process that it started."""
        return
