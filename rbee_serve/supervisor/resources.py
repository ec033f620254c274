"""Whether a machine has the resources that the workers request: Serve would wait for them without end or message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor

from rbee_serve.config import WorkerConfig


def shortage(workers: Sequence[WorkerConfig], found: Mapping[str, float]) -> str | None:
    """One sentence about the missing resource, or None. `found` are Ray's resources of the machine, `CPU` and `GPU`."""
    cpus = sum(worker.cpus * worker.desired_replicas for worker in workers)
    if cpus > found.get("CPU", 0):
        return _sentence(workers, "cpus", f"{cpus:g} CPU cores", found.get("CPU", 0))
    gpus = _gpus_needed(workers)
    if gpus > found.get("GPU", 0):
        return _sentence(workers, "gpus", "1 GPU" if gpus == 1 else f"{gpus} GPUs", found.get("GPU", 0))
    return None


def _gpus_needed(workers: Sequence[WorkerConfig]) -> int:
    """Whole GPUs, and shared ones: a fraction is placed on one GPU, so three of 0.6 need three."""
    requested = [worker.gpus for worker in workers for _ in range(worker.desired_replicas)]
    free: list[float] = []
    for fraction in sorted((gpus for gpus in requested if 0 < gpus < 1), reverse=True):
        fitting = next((index for index, left in enumerate(free) if left + 1e-9 >= fraction), None)
        if fitting is None:
            free.append(1 - fraction)
        else:
            free[fitting] -= fraction
    return floor(sum(gpus for gpus in requested if gpus >= 1)) + len(free)


def _sentence(workers: Sequence[WorkerConfig], key: str, resource: str, found: float) -> str:
    requested = ", ".join(f"{w.id} {getattr(w, key) * w.desired_replicas:g}" for w in workers if getattr(w, key))
    return f"the workers request {resource} ({requested}), this machine has {found:g}: lower `{key}` or `replicas`"
