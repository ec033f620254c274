"""The only thing that a new model family has to write."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol, TypeVar

from rbee_serve.events import Event
from rbee_serve.outputs import OutputValue
from rbee_serve.request import InferenceRequest

RequestT_contra = TypeVar("RequestT_contra", bound=InferenceRequest, contravariant=True)
OutputT = TypeVar("OutputT", bound=OutputValue)


class InferenceBackend(Protocol[RequestT_contra, OutputT]):
    """A loaded model that answers requests.

    It is used from one event loop and runs without Ray. Subclass it for the defaults of `is_healthy`, `is_ready` and
    `close`.
    """

    def execute(self, request: RequestT_contra) -> AsyncIterator[Event[OutputT]]:
        """Work on one request: any number of `Output`, `Progress`, `Metrics` and `Narration`, then one `End`.

        `Started`, `Error` and the marker at the end are added by the library, and the order is enforced there. A
        failure is raised: a `WorkerError` reaches the client as it is, any other exception as `INTERNAL` with its
        details in the log. What is raised before the first event is a refusal and becomes an HTTP status; `started`
        goes out with the first event, so yield a `Narration` or `Progress` as soon as the request is accepted.

        When the client leaves, the iterator is closed: stop the work in `finally`. Nothing here may block the event
        loop; model code belongs in a thread or a process.
        """
        ...

    def is_healthy(self) -> bool:
        """False if only a new process can help. Must not block. That the engine makes steps is looked after by the
        library (`LoadContext.steps`)."""
        return True

    def is_ready(self) -> bool:
        """True once requests can be worked on. Must not block."""
        return True

    def memory_bytes(self) -> int:
        """Bytes of device memory (VRAM, or RAM on a CPU) that the model holds. Must not block."""
        ...

    def engine_requests(self) -> int | None:
        """Requests that the engine itself has in hand, by its own count; None if it does not tell. Must not block."""
        return None

    def close(self) -> None:
        """Free the model and end every process that it started."""
        return
