"""A configuration and replicas to test with."""

from __future__ import annotations

from typing import Any

import msgspec

from rbee_serve.config import ApplicationConfig, WorkerConfig, parse_application
from rbee_serve.state import ReplicaState, WorkerState, fold

WORKER = WorkerConfig(id="llm-1", type="llm", model_ref="hf:org/model", model_name="model")


def application(callback_url: str, worker_ids: tuple[str, ...] = ("llm-1",), **orchestrator: Any) -> ApplicationConfig:
    """An application whose orchestrator is called often and given little time."""
    quick = {"heartbeat_interval_s": 0.1, "timeout_s": 0.5, "ready_backoff_max_s": 0.1}
    return parse_application(
        {
            "workers": [{**WORKER.model_dump(exclude_unset=True), "id": worker_id} for worker_id in worker_ids],
            "orchestrator": {"callback_url": callback_url, **quick, **orchestrator},
        }
    )


def replica(replica_id: str = "a", boot_id: str = "boot-a", **changes: Any) -> ReplicaState:
    """A replica of `llm-1` that serves."""
    serving = ReplicaState(
        worker_id="llm-1",
        replica_id=replica_id,
        boot_id=boot_id,
        phase="ready",
        backend="cuda",
        devices=(0,),
        memory_bytes=1000,
        memory_source="driver",
    )
    return msgspec.structs.replace(serving, **changes)


def worker_state(
    *replicas: ReplicaState, desired_replicas: int = 1, stopping: bool = False, was_ready: bool = False
) -> WorkerState:
    """`llm-1` with these replicas. It is given up where all of them have failed."""
    given_up = bool(replicas) and all(one.phase == "error" for one in replicas)
    return fold("llm-1", desired_replicas, replicas, was_ready=was_ready, stopping=stopping, given_up=given_up)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
