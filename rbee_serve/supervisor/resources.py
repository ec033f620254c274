"""Whether a machine has what the workers ask for: Serve would wait for it for ever, and say nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor

from rbee_serve.config import WorkerConfig


def shortage(workers: Sequence[WorkerConfig], found: Mapping[str, float]) -> str | None:
    """One sentence on what is missing, or None. `found` are Ray's resources of the machine, `CPU` and `GPU`."""
    cpus = sum(worker.cpus * worker.desired_replicas for worker in workers)
    if cpus > found.get("CPU", 0):
        return _sentence(workers, "cpus", f"{cpus:g} CPU cores", found.get("CPU", 0))
    gpus = _gpus_needed(workers)
    if gpus > found.get("GPU", 0):
        return _sentence(workers, "gpus", "1 GPU" if gpus == 1 else f"{gpus} GPUs", found.get("GPU", 0))
    return None


def _gpus_needed(workers: Sequence[WorkerConfig]) -> int:
    """Whole GPUs, and those that are shared: a share lies on one GPU, so three of 0.6 need three."""
    copies = [worker.gpus for worker in workers for _ in range(worker.desired_replicas)]
    room: list[float] = []
    for share in sorted((gpus for gpus in copies if 0 < gpus < 1), reverse=True):
        fitting = next((index for index, left in enumerate(room) if left + 1e-9 >= share), None)
        if fitting is None:
            room.append(1 - share)
        else:
            room[fitting] -= share
    return floor(sum(gpus for gpus in copies if gpus >= 1)) + len(room)


def _sentence(workers: Sequence[WorkerConfig], key: str, resource: str, found: float) -> str:
    asked = ", ".join(f"{w.id} {getattr(w, key) * w.desired_replicas:g}" for w in workers if getattr(w, key))
    return f"the workers ask for {resource} ({asked}), this machine has {found:g}: lower `{key}` or `replicas`"
