"""A worker in one JSON object: the response of `GET /info`, and the body of the `queen` heartbeat."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from rbee_serve.config import WorkerConfig
from rbee_serve.state import WorkerState

_KINDS = {"cuda": "GPU", "cpu": "CPU", "metal": "METAL"}


def _version() -> str:
    try:
        return metadata.version("rbee-serve")
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return "0+source"


VERSION = _version()
"""The version of rbee-serve that is running."""


def backend_of(worker: WorkerConfig, state: WorkerState) -> str:
    """`cuda`, `cpu` or `metal`: as the replicas report it, and before that as the configuration suggests."""
    if state.backend:
        return state.backend
    if worker.backend != "auto":
        return worker.backend
    return "cuda" if worker.gpus else "cpu"


def worker_info(worker: WorkerConfig, state: WorkerState, port: int, implementation: str) -> dict[str, Any]:
    """The `/info` object.

    `implementation` is the name of the worker's type (`WorkerSpec.name`), not the import string that the configuration
    may hold. `device` is the lowest device, `devices` lists all of them. Where they are on several machines `nodes`
    lists the address of each one's. `vram_bytes` is the memory that the model holds there, `vram_source` how it was
    counted (`MemorySource`); both are left out while they are unknown.
    """
    kind = _KINDS.get(backend_of(worker, state), "CPU")
    devices = [f"{kind}-{index}" for index in state.devices or (0,)]
    known = {"vram_bytes": state.memory_bytes, "vram_source": state.memory_source, "nodes": list(state.nodes)}
    return {
        "id": worker.id,
        "model_id": worker.served_name,
        "device": devices[0],
        "devices": devices,
        "port": port,
        "status": state.status,
        "implementation": f"rbee-serve/{implementation}",
        "version": VERSION,
        **{name: value for name, value in known.items() if value},
    }
