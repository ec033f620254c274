"""Which replica gets which GPU. Ray decides when it starts; for a plan it is enough that the shares fit as Ray places
them: whole GPUs, and a share on the fullest GPU that still has room for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rbee_serve.config import WorkerConfig

_EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class PlacedReplica:
    """One replica and its GPUs by index; none where no GPU is left for it."""

    worker: WorkerConfig
    label: str
    gpus: tuple[int, ...]


def placed_replicas(workers: Sequence[WorkerConfig], gpu_count: int) -> list[PlacedReplica]:
    """Every replica that asks for GPUs, in the order of the configuration. Larger requests are placed first."""
    requests = [
        (worker, worker.id if worker.desired_replicas == 1 else f"{worker.id} #{replica + 1}")
        for worker in workers
        if worker.gpus
        for replica in range(worker.desired_replicas)
    ]
    left = [1.0] * gpu_count
    placed = {label: _take(left, worker.gpus) for worker, label in sorted(requests, key=lambda each: -each[0].gpus)}
    return [PlacedReplica(worker, label, placed[label]) for worker, label in requests]


def _take(left: list[float], gpus: float) -> tuple[int, ...]:
    """Take the GPUs of one replica from what is `left` of each."""
    if gpus >= 1:
        free = [index for index, part in enumerate(left) if part > 1 - _EPSILON][: int(gpus)]
        chosen, share = (tuple(free), 1.0) if len(free) == int(gpus) else ((), 1.0)
    else:
        fitting = [index for index, part in enumerate(left) if part + _EPSILON >= gpus]
        chosen, share = (min(fitting, key=lambda index: left[index]),) if fitting else (), gpus
    for index in chosen:
        left[index] -= share
    return chosen
