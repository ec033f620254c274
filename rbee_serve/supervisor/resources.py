"""Whether the machines have the resources that the workers request: Serve would wait without end or message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rbee_serve.config import WorkerConfig
from rbee_serve.placement import UNIT, Node, first_without_place, placement_order


def shortage(workers: Sequence[WorkerConfig], found: Sequence[Mapping[str, Any]]) -> str | None:
    """One sentence about the missing resource, or None. `found` is `ray.nodes()` before anything runs."""
    alive = [node for node in found if node["Alive"]]
    nodes = [Node.of(node) for node in alive]
    cpus = sum(worker.cpus * worker.desired_replicas for worker in workers)
    cpus_found = sum(node.cpus for node in nodes) / UNIT
    if cpus > cpus_found:
        return _too_many(workers, "cpus", f"{cpus:g} CPU cores", cpus_found, len(nodes))
    gpus, gpus_found = _gpus_needed(workers), sum(len(node.gpus) for node in nodes)
    if gpus > gpus_found:
        return _too_many(workers, "gpus", _gpus(gpus), gpus_found, len(nodes))
    for worker in workers:
        if all(Node.of(node).take(worker.cpus, worker.gpus) is None for node in alive):
            return (
                f"each replica of {worker.id} requests {_amount(worker.gpus, worker.cpus)} of one machine, and none "
                f"has that ({_listed(nodes)}): lower `gpus` or `cpus`"
            )
    if last := first_without_place(placement_order(workers), [Node.of(node) for node in alive]):
        return (
            f"beside the other replicas, the machines ({_listed(nodes)}) have no place for one of {last.id}, which "
            f"requests {_amount(last.gpus, last.cpus)} of one machine: lower `gpus`, `cpus` or `replicas`"
        )
    return None


def _gpus_needed(workers: Sequence[WorkerConfig]) -> int:
    """The GPUs that a machine with enough cores would need. A share is of one GPU, so three of 0.6 need three."""
    most = sum(max(1, int(worker.gpus)) * worker.desired_replicas for worker in workers if worker.gpus)
    machine = Node("", UNIT, [UNIT] * most)
    for worker in placement_order(workers):
        for _ in range(worker.desired_replicas):
            machine.take(0, worker.gpus)
    return sum(left < UNIT for left in machine.gpus)


def _too_many(workers: Sequence[WorkerConfig], key: str, resource: str, found: float, machines: int) -> str:
    requested = ", ".join(f"{w.id} {getattr(w, key) * w.desired_replicas:g}" for w in workers if getattr(w, key))
    have = "this machine has" if machines == 1 else f"the {machines} machines have"
    return f"the workers request {resource} ({requested}), {have} {found:g}: lower `{key}` or `replicas`"


def _listed(nodes: Sequence[Node]) -> str:
    return ", ".join(f"{node.address}: {_amount(len(node.gpus), node.cpus / UNIT)}" for node in nodes)


def _amount(gpus: float, cpus: float) -> str:
    return " and ".join([*([_gpus(gpus)] if gpus else []), *([f"{cpus:g} CPU cores"] if cpus else [])]) or "nothing"


def _gpus(count: float) -> str:
    return f"{count:g} GPU" + ("" if count == 1 else "s")
