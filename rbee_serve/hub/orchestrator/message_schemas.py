"""The messages to the orchestrator, with every field's type, range and form. A field that is None is not sent.

The hub builds its messages from these models, and the fake hive validates with them what it receives. Unknown keys are
allowed, as in rbee-hive.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from rbee_serve.state import MemorySource

MAX_TEXT = 4096
"""Characters of the longest text."""

HealthStatus = Literal["healthy", "degraded"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=256)]
ShortName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=64)]
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Count = Annotated[int, Field(ge=0)]
Port = Annotated[int, Field(ge=1, le=65535)]
DeviceName = Annotated[str, Field(pattern=r"^(GPU|CPU|METAL)-[0-9]+$")]


def _real_moment(text: str) -> str:
    datetime.fromisoformat(text)  # the pattern alone accepts 31 February
    return text


Timestamp = Annotated[
    str,
    Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|\+00:00)$"),
    AfterValidator(_real_moment),
]
"""RFC 3339, in UTC."""


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class Ready(_Message):
    """`POST /v1/workers/ready`."""

    worker_id: Name
    url: Annotated[str, Field(pattern=r"^https?://[^\s/]+/workers/[A-Za-z0-9_-]+$")]
    model_ref: Text
    backend: ShortName
    device: Count
    devices: list[Count] = Field(default_factory=list)
    nodes: list[Text] | None = None
    vram_bytes: Count
    vram_source: MemorySource | None = None
    port: Port
    worker_type: Text
    boot_id: Text

    @model_validator(mode="after")
    def _check_url(self) -> Self:
        if not self.url.endswith(f"/workers/{self.worker_id}"):
            raise ValueError(f"url does not end with /workers/{self.worker_id}")
        return self


class Heartbeat(_Message):
    """`POST /v1/heartbeat`."""

    worker_id: Name
    timestamp: Timestamp
    health_status: HealthStatus


class Info(_Message):
    """The `/info` object."""

    id: Name
    model_id: Text
    device: DeviceName
    devices: list[DeviceName] = Field(default_factory=list)
    nodes: list[Text] | None = None
    port: Port
    status: Literal["starting", "ready", "busy", "stopping", "stopped", "error"]
    implementation: Text
    version: Text
    vram_bytes: Count | None = None
    vram_source: MemorySource | None = None


class WorkerHeartbeat(_Message):
    """`POST /v1/worker-heartbeat`."""

    worker: Info
    timestamp: Timestamp


class LoadFailure(_Message):
    """`POST` to `on_error_url`."""

    worker_id: Name
    worker_type: Text
    model_ref: Text
    boot_id: Text
    code: Text
    message: Text
    timestamp: Timestamp


Message = Ready | Heartbeat | WorkerHeartbeat | LoadFailure


def worker_id_of(message: Message) -> str:
    """The id of the worker that a message is about."""
    return message.worker.id if isinstance(message, WorkerHeartbeat) else message.worker_id


def faults(error: ValidationError) -> list[str]:
    """One sentence for each fault, such as `vram_bytes: Input should be a valid integer`."""
    return [
        f"{'.'.join(str(part) for part in fault['loc']) or 'the message'}: {fault['msg'].removeprefix('Value error, ')}"
        for fault in error.errors(include_url=False, include_input=False, include_context=False)
    ]
