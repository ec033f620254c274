"""On which node and GPU a replica is placed, and in what order the workers are deployed.

Ray gives a share of a GPU the GPU with the least left that is enough, and whole GPUs those that nobody uses, all on one
node (`NodeResourceInstanceSet::TryAllocate` in its source). Nothing is moved later, so the order of arrival decides: of
the shares 0.4, 0.6, 0.4 and 0.6 on two GPUs each order fits but those in which both 0.4 come first and find one GPU.
Hence the largest share is deployed first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from rbee_serve.config import WorkerConfig

UNIT = 10_000
"""The parts of one CPU core or GPU that Ray distinguishes (`fixed_point.h` in its source)."""


@dataclass(slots=True)
class Node:
    """What is free on a machine of the cluster, in parts of `UNIT`."""

    address: str
    cpus: int
    gpus: list[int]
    """Of each GPU."""

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Self:
        """An entry of `ray.nodes()` while nothing runs there."""
        resources = found["Resources"]
        return cls(found["NodeManagerAddress"], _units(resources.get("CPU", 0)), [UNIT] * int(resources.get("GPU", 0)))

    def take(self, cpus: float, gpus: float) -> Sequence[int] | None:
        """Reserve the resources of a replica by Ray's rule, and return the indices of its GPUs. None, and nothing is
        reserved, if they are not free."""
        chosen = self._choose(_units(gpus))
        if chosen is None or _units(cpus) > self.cpus:
            return None
        self.cpus -= _units(cpus)
        for index in chosen:
            self.gpus[index] -= min(_units(gpus), UNIT)
        return chosen

    def _choose(self, gpus: int) -> Sequence[int] | None:
        """The indices of the GPUs."""
        if gpus >= UNIT:
            free = [index for index, left in enumerate(self.gpus) if left == UNIT]
            return free[: gpus // UNIT] if len(free) >= gpus // UNIT else None
        fitting = [index for index, left in enumerate(self.gpus) if left >= gpus] if gpus else []
        if gpus and not fitting:
            return None
        return sorted(fitting, key=lambda index: self.gpus[index])[:1]


def placement_order(workers: Sequence[WorkerConfig]) -> list[WorkerConfig]:
    """The workers in the order in which they are deployed: the largest share of GPUs first, then the most CPU cores,
    and each after the workers that it uses."""
    by_id = {worker.id: worker for worker in workers}
    ordered: dict[str, WorkerConfig] = {}
    for worker in sorted(workers, key=lambda worker: (-worker.gpus, -worker.cpus)):
        for worker_id in (*worker.uses.values(), worker.id):
            ordered.setdefault(worker_id, by_id[worker_id])
    return list(ordered.values())


def first_without_place(workers: Iterable[WorkerConfig], nodes: Iterable[Node]) -> WorkerConfig | None:
    """The first of the workers, in the order given, whose replicas do not all get their resources; None if all do.

    `nodes` are changed. Ray Serve spreads replicas over the nodes; here each goes to the fullest node that has room, so
    what does not fit here may never fit, and what fits may still be spread so that the last one waits.
    """
    nodes = list(nodes)
    for worker in workers:
        for _ in range(worker.desired_replicas):
            nodes.sort(key=lambda node: (sum(node.gpus), node.cpus))
            if all(node.take(worker.cpus, worker.gpus) is None for node in nodes):
                return worker
    return None


def _units(amount: float) -> int:
    return round(amount * UNIT)
