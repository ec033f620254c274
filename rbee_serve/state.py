"""The state of workers: what replicas push to the hub, and the hub to the ingresses.

State is pushed and never requested: a call to a loading or a full replica would wait. Each replica pushes a
`ReplicaState` twice a second and on change; the hub folds them into one `WorkerState` per worker; ingresses hold the
latest `Snapshot`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import msgspec

Phase = Literal["loading", "ready", "error", "stopping"]
"""Where a replica is in its life. A replica that is gone has no phase: its connection to the hub is closed."""

Availability = Literal["loading", "idle", "busy", "error"]
"""The `state` of `GET /v1/ready`."""

MemorySource = Literal["driver", "torch", "engine", "share", "ram"]
"""How device memory was counted, the most exact way first. `driver`: by NVIDIA's driver, for each process. `torch`:
what torch has reserved in the replica, with an assumed CUDA context. `engine`: the same, in the processes of the
engine. `share`: not at all, it is the worker's share of its GPUs. `ram`: resident memory of the processes, without a
GPU."""

STALE_AFTER_S = 3.5
"""A replica that has loaded and sent no state for this long hangs and is treated as gone: seven updates. A process that
has died is noticed at once by its closed connection."""


class LoadProgress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Progress of a load. Unknown values are left out; bytes and layers are never estimated.

    `stage` is `downloading`, `converting`, `waiting_for_gpu`, `starting_engine` (imports and processes),
    `loading_to_vram`, `preparing_engine` (caches, compilation), `warming_up` or `ready`. `vram_mb` counts 10^6 bytes on
    the device, or in RAM on a CPU. `held_by` is the id of the worker that loads onto the GPU meanwhile.
    """

    stage: str
    bytes_done: int | None = None
    bytes_total: int | None = None
    layers_loaded: int | None = None
    layers_total: int | None = None
    vram_mb: int | None = None
    held_by: str | None = None


class ReplicaState(msgspec.Struct, frozen=True, kw_only=True):
    """One replica. `devices` are numbered on its machine, whose address in Ray's cluster is `node`. `memory_bytes` is
    the memory that the model holds on them (VRAM, or RAM on a CPU); `capacity` is the number of requests that run at
    once, `engine_requests` the engine's own count of its requests. `last_progress_age_s` are whole seconds since the
    engine's last step, while it has work. Unknown values are None.
    """

    worker_id: str
    replica_id: str
    boot_id: str
    phase: Phase
    backend: str
    devices: tuple[int, ...] = (0,)
    node: str = ""
    healthy: bool = True
    load: LoadProgress | None = None
    running: int = 0
    queued: int = 0
    capacity: int = 1
    engine_requests: int | None = None
    last_progress_age_s: int | None = None
    memory_bytes: int = 0
    memory_source: MemorySource | None = None
    error_code: str | None = None
    error: str | None = None

    @property
    def serves(self) -> bool:
        """Whether it takes requests."""
        return self.phase == "ready" and self.healthy


class WorkerState(msgspec.Struct, frozen=True, kw_only=True):
    """All live replicas of one worker together: ready = at least one is, busy = all are full, memory = their sum."""

    worker_id: str
    desired_replicas: int
    replicas: tuple[ReplicaState, ...] = ()
    was_ready: bool = False
    stopping: bool = False
    given_up: bool = False
    """Nothing more is tried: no replica serves, and Ray Serve starts no other."""
    lost: str | None = None
    """Why a replica was lost or could not be loaded, until one serves again: a clause for operators."""
    waits_for: str | None = None
    """What the start of a replica waits for, while no process has started."""

    @property
    def serving(self) -> tuple[ReplicaState, ...]:
        """The replicas that take requests."""
        return tuple(replica for replica in self.replicas if replica.serves)

    @property
    def ready(self) -> bool:
        """At least one replica takes requests, and the application is not being shut down."""
        return bool(self.serving) and not self.stopping

    @property
    def degraded(self) -> bool:
        """Fewer replicas take requests than are desired."""
        return len(self.serving) < self.desired_replicas

    @property
    def availability(self) -> Availability:
        """The `state` of `GET /v1/ready`."""
        if self.serving:
            return "busy" if all(r.running >= r.capacity for r in self.serving) else "idle"
        return "error" if self.given_up else "loading"

    @property
    def reason(self) -> str:
        """Why it takes no requests, or has lost a replica, and what happens next: a clause for operators."""
        if self.given_up:
            return self.error or self.lost or "no replica could be started; Ray Serve's log has the reason"
        attempt = "a replacement" if self.was_ready else "another attempt"
        if self.lost is not None:
            return f"{self.lost}; {attempt} {self._stage_of_start}"
        if self.load is not None:
            return f"still loading ({self.load.stage})"
        return f"still loading: {self.waits_for}" if self.waits_for else "still loading"

    @property
    def _stage_of_start(self) -> str:
        if self.load is not None:
            return "is loading"
        return f"is starting: {self.waits_for}" if self.waits_for else "is starting"

    @property
    def status(self) -> str:
        """The `status` of `/info`."""
        if self.stopping:
            return "stopping"
        return {"loading": "starting", "idle": "ready", "busy": "busy", "error": "error"}[self.availability]

    @property
    def memory_bytes(self) -> int:
        """Bytes of device memory (VRAM, or RAM on a CPU) that the replicas hold together. One that has failed is
        listed for its reason only; its process is gone."""
        return sum(replica.memory_bytes for replica in self.replicas if replica.phase != "error")

    @property
    def memory_source(self) -> MemorySource | None:
        """How they were counted, by the least exact way among the replicas; None if that is unknown."""
        sources = [r.memory_source for r in self.replicas if r.phase != "error" and r.memory_source is not None]
        return max(sources, key=get_args(MemorySource).index, default=None)

    @property
    def devices(self) -> tuple[int, ...]:
        """Every device of every replica, lowest first; machine by machine where there are several."""
        return tuple(device for _, device in self._devices_by_node)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The address of the machine of each of the `devices`; empty where all replicas are on one."""
        nodes = tuple(node for node, _ in self._devices_by_node)
        return nodes if len(set(nodes)) > 1 else ()

    @property
    def _devices_by_node(self) -> list[tuple[str, int]]:
        """Distinct by both: two machines have a device 0 each."""
        return sorted({(replica.node, device) for replica in self.replicas for device in replica.devices})

    @property
    def backend(self) -> str | None:
        """`cuda`, `cpu` or `metal`; None before a replica has reported it."""
        return self.replicas[0].backend if self.replicas else None

    @property
    def boot_id(self) -> str | None:
        """The boot of the replica that has served longest: replicas are listed by the time of their first update."""
        return self.serving[0].boot_id if self.serving else None

    @property
    def load(self) -> LoadProgress | None:
        """Progress of the first loading replica."""
        return next((r.load for r in self.replicas if r.phase == "loading" and r.load), None)

    @property
    def error(self) -> str | None:
        """What is wrong with a replica, as that one reported it."""
        return next((r.error for r in self.replicas if r.error), None)

    @property
    def error_code(self) -> str | None:
        """The code of that error, such as `INSUFFICIENT_VRAM`."""
        return next((r.error_code for r in self.replicas if r.error_code), None)


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All workers at one moment. `version` grows with every change."""

    version: int
    workers: tuple[WorkerState, ...]
    stopping: bool = False
    aborting: bool = False
    """Running requests have to end now, with an error."""
    hub_boot_id: str = ""

    def worker(self, worker_id: str) -> WorkerState | None:
        """The worker of that id."""
        return next((worker for worker in self.workers if worker.worker_id == worker_id), None)


def fold(
    worker_id: str,
    desired_replicas: int,
    replicas: Sequence[ReplicaState],
    *,
    was_ready: bool,
    stopping: bool,
    given_up: bool = False,
    lost: str | None = None,
    waits_for: str | None = None,
) -> WorkerState:
    """One worker out of its live replicas, listed by the time of their first update."""
    return WorkerState(
        worker_id=worker_id,
        desired_replicas=desired_replicas,
        replicas=tuple(replicas),
        was_ready=was_ready,
        stopping=stopping,
        given_up=given_up,
        lost=lost,
        waits_for=waits_for,
    )


def invalid_field(value: msgspec.Struct) -> str | None:
    """The first field whose value cannot be sent as the field's type, such as ``memory_bytes (Expected `int`, got
    `None`)``; None if all can. msgspec checks types only when it decodes, which is in another process."""
    for field in msgspec.structs.fields(type(value)):
        try:
            msgspec.msgpack.decode(msgspec.msgpack.encode(getattr(value, field.name)), type=field.type)
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as exc:
            return f"{field.name} ({exc})"
    return None
