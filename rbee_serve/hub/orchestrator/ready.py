"""The ready callback: a worker has loaded its model, has answered once, and takes requests."""

from __future__ import annotations

from typing import Any

from rbee_serve.config import WorkerConfig
from rbee_serve.state import WorkerState
from rbee_serve.worker_info import backend_of


def worker_url(base_url: str, worker_id: str) -> str:
    """The URL that the routes of one worker begin with: `{base}` of the wire protocol."""
    return f"{base_url.rstrip('/')}/workers/{worker_id}"


def ready_message(
    worker: WorkerConfig, state: WorkerState, base_url: str, port: int, implementation: str
) -> dict[str, Any]:
    """What is POSTed to the callback URL.

    rbee-hive reads `worker_id`, `url`, `model_ref`, `backend` and `device`; the rest stands beside them. `vram_bytes`
    is the sum of all replicas (RAM on a CPU), `device` the lowest of `devices`, `boot_id` tells one start from the
    next. A worker that needs no model gives its served name as `model_ref`.
    """
    devices = list(state.devices or (0,))
    return {
        "worker_id": worker.id,
        "url": worker_url(base_url, worker.id),
        "model_ref": worker.model_ref or worker.served_name,
        "backend": backend_of(worker, state),
        "device": devices[0],
        "devices": devices,
        "vram_bytes": state.memory_bytes,
        "port": port,
        "worker_type": implementation,
        "boot_id": state.boot_id,
    }
