"""The rules about a worker's GPUs that can be checked from its configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rbee_serve.config import WorkerConfig
from rbee_serve.worker.spec import WorkerSpec


def gpu_faults(worker: WorkerConfig, spec: WorkerSpec[Any]) -> Iterator[str]:
    """The faults of `backend` and `gpus`, each with its key."""
    if worker.backend != "auto" and worker.backend not in spec.accelerators:
        supported = ", ".join(sorted(spec.accelerators))
        yield f"backend: a {spec.name} worker cannot run on {worker.backend}; it runs on {supported}"
    elif worker.backend == "cuda" and not worker.gpus:
        yield "gpus: backend: cuda needs at least a share of a GPU; set gpus, such as 1 or 0.5"
    elif worker.backend == "auto" and worker.gpus and "cuda" not in spec.accelerators:
        yield f"gpus: a {spec.name} worker uses no GPU; leave gpus out"
    elif spec.max_gpus is not None and worker.gpus > spec.max_gpus:
        count = "1 GPU" if spec.max_gpus == 1 else f"{spec.max_gpus} GPUs"
        yield f"gpus: a {spec.full_name} worker uses {count} at most; lower it, and set replicas for more"
