"""Which replica gets which GPU of one machine. Ray decides when it starts; the plan places them by its rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rbee_serve.config import WorkerConfig
from rbee_serve.placement import UNIT, Node, placement_order


@dataclass(frozen=True, slots=True)
class PlacedReplica:
    """One replica and its GPUs by index; none where no GPU is left for it."""

    worker: WorkerConfig
    label: str
    gpus: tuple[int, ...]


def placed_replicas(workers: Sequence[WorkerConfig], gpu_count: int) -> list[PlacedReplica]:
    """Every replica that requests GPUs, in the order of the configuration."""
    machine = Node("", 0, [UNIT] * gpu_count)
    gpus = {
        (worker.id, replica): tuple(machine.take(0, worker.gpus) or ())
        for worker in placement_order(workers)
        for replica in range(worker.desired_replicas)
    }
    return [
        PlacedReplica(worker, _label(worker, replica), gpus[worker.id, replica])
        for worker in workers
        if worker.gpus
        for replica in range(worker.desired_replicas)
    ]


def _label(worker: WorkerConfig, replica: int) -> str:
    return worker.id if worker.desired_replicas == 1 else f"{worker.id} #{replica + 1}"
