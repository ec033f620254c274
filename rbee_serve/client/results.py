"""The typed results of the clients' status methods. Fields that a server does not send have their default."""

from __future__ import annotations

from typing import Any

import msgspec

from rbee_serve.state import LoadProgress


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /health` of the server or of one worker. `status` is `healthy` or `unhealthy`; `vram_bytes` is the memory
    that a worker's model holds (VRAM, or RAM on a CPU), `vram_source` how it was counted."""

    status: str
    vram_bytes: int | None = None
    vram_source: str | None = None


class WorkerReadiness(msgspec.Struct, frozen=True, kw_only=True):
    """One worker in `GET /v1/ready`. `state` is `loading`, `idle`, `busy` or `error`; `reason` is why it is not ready,
    or lacks a replica, and what follows; `code` the error code of a failed load, `progress` how far a load is."""

    id: str
    ready: bool
    state: str
    reason: str = ""
    code: str | None = None
    progress: LoadProgress | None = None

    @property
    def failed(self) -> bool:
        """Whether nothing more is tried: the model could not be loaded."""
        return self.state == "error"


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /v1/ready`: of the server with its `workers` in the order of the configuration, or of one worker with its
    `state`; `progress_url` is the path of the load's progress while it loads."""

    ready: bool
    state: str = ""
    progress_url: str | None = None
    workers: tuple[WorkerReadiness, ...] = ()


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /info` of a worker. `device` is the lowest of `devices`, such as `GPU-0`; `nodes` are the addresses of their
    machines, if there are several. `status` is `starting`, `ready`, `busy`, `stopping` or `error`. `vram_bytes` is the
    memory that the model holds (VRAM, or RAM on a CPU), `vram_source` how it was counted."""

    id: str
    model_id: str
    device: str
    devices: tuple[str, ...]
    port: int
    status: str
    implementation: str
    version: str
    nodes: tuple[str, ...] = ()
    vram_bytes: int | None = None
    vram_source: str | None = None


class ReplicaInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One replica of a worker; `node` is the address of its machine, `capacity` is how many requests it runs at once,
    `last_progress_age_s` the whole seconds since its engine's last step, while it has work."""

    phase: str
    healthy: bool
    devices: tuple[int, ...]
    running: int
    queued: int
    capacity: int
    engine_requests: int | None = None
    last_progress_age_s: int | None = None
    node: str = ""


class WorkerDescription(WorkerInfo, frozen=True, kw_only=True):
    """One worker in `GET /v1/workers`: its `/info`, where it is reached, the wire names of its `outputs`, how many
    requests a replica runs at once, its replicas, and the bounds of its request fields as in JSON Schema."""

    url: str
    type: str
    task: str | None
    outputs: tuple[str, ...]
    capacity: int
    replicas: tuple[ReplicaInfo, ...]
    limits: dict[str, dict[str, Any]]


class WorkerList(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /v1/workers`."""

    workers: tuple[WorkerDescription, ...]
