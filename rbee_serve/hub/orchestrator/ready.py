"""The ready callback: a worker has loaded its model, has passed its warm-up, and accepts requests."""

from __future__ import annotations

from rbee_serve.config import WorkerConfig
from rbee_serve.hub.orchestrator.message_schemas import Ready
from rbee_serve.state import WorkerState
from rbee_serve.worker_info import backend_of


def worker_url(base_url: str, worker_id: str) -> str:
    """The URL prefix of one worker's routes: `{base}` of the wire protocol."""
    return f"{base_url.rstrip('/')}/workers/{worker_id}"


def ready_message(worker: WorkerConfig, state: WorkerState, base_url: str, port: int, implementation: str) -> Ready:
    """The message for the callback URL.

    rbee-hive reads `worker_id`, `url`, `model_ref`, `backend` and `device`; the other fields are additions.
    `vram_bytes` is the sum over all replicas (RAM on a CPU), `device` the lowest of `devices`, `boot_id` identifies the
    start of the process; `nodes` and `vram_source` are those of `/info` (`worker_info`). For a worker that needs no
    model `model_ref` is its served name.
    """
    devices = list(state.devices or (0,))
    return Ready(
        worker_id=worker.id,
        url=worker_url(base_url, worker.id),
        model_ref=worker.model_ref or worker.served_name,
        backend=backend_of(worker, state),
        device=devices[0],
        devices=devices,
        nodes=list(state.nodes) or None,
        vram_bytes=state.memory_bytes,
        vram_source=state.memory_source,
        port=port,
        worker_type=implementation,
        boot_id=state.boot_id or "",
    )
