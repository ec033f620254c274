"""Ray's rule for shares of GPUs, and the order in which workers are deployed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import pytest

from rbee_serve.config import WorkerConfig
from rbee_serve.placement import Node, first_without_place, placement_order


def node(gpus: int, cpus: float = 8, address: str = "10.0.0.1") -> Node:
    return Node.of({"NodeManagerAddress": address, "Resources": {"CPU": cpus, "GPU": gpus, f"node:{address}": 1.0}})


def workers(*settings: dict[str, Any]) -> list[WorkerConfig]:
    names = iter("abcdefgh")
    return [WorkerConfig(id=next(names), type="echo", **{"cpus": 0, **setting}) for setting in settings]


def shares(*gpus: float) -> list[WorkerConfig]:
    return workers(*({"gpus": share} for share in gpus))


def stranded(orders: Sequence[Sequence[WorkerConfig]], gpus: int) -> int:
    """In how many of the orders a worker gets no GPU."""
    return sum(first_without_place(order, [node(gpus)]) is not None for order in orders)


@pytest.mark.parametrize(
    ("gpus", "of", "strands"),
    [
        ((0.4, 0.4, 0.6, 0.6), 2, 4),
        ((0.3, 0.3, 0.7, 0.7), 2, 4),
        ((0.25, 0.25, 0.5, 1), 2, 0),
        ((0.5, 0.5, 1), 2, 0),
        ((0.2, 0.2, 0.8, 0.8, 1), 3, 4 * 5),
        ((0.5, 0.3, 0.2), 1, 0),
    ],
)
def test_some_orders_of_arrival_strand_a_worker_and_the_order_of_deployment_never_does(
    gpus: tuple[float, ...], of: int, strands: int
) -> None:
    orders = list(permutations(shares(*gpus)))
    assert stranded(orders, of) == strands
    assert stranded([placement_order(order) for order in orders], of) == 0


def test_ten_tenths_are_one_gpu() -> None:
    tenths = workers({"gpus": 0.1, "replicas": 10})
    assert first_without_place(tenths, [node(1)]) is None
    assert first_without_place([*tenths, *tenths[:1]], [node(1)]) is not None


def test_a_share_goes_to_the_gpu_with_the_least_left_that_is_enough() -> None:
    machine = node(3)
    assert machine.take(0, 0.5)
    assert machine.take(0, 1)
    assert machine.take(0, 0.4)
    assert machine.gpus == [1000, 0, 10_000]
    assert machine.take(0, 0.2)
    assert machine.gpus == [1000, 0, 8000]


def test_whole_gpus_are_those_that_nobody_uses_and_of_one_node() -> None:
    machine = node(2)
    assert machine.take(0, 0.1)
    assert not machine.take(0, 2)
    assert machine.take(0, 1)
    assert first_without_place(workers({"gpus": 2}), [node(1), node(1)]) is not None
    assert first_without_place(workers({"gpus": 2}), [node(1), node(2)]) is None


def test_cores_and_gpus_of_a_replica_are_of_one_node() -> None:
    machines = (node(1, cpus=2), node(0, cpus=64))
    [wants_both] = workers({"gpus": 1, "cpus": 4})
    assert first_without_place([wants_both], machines) is wants_both
    assert (machines[0].cpus, machines[0].gpus) == (20_000, [10_000])


def test_a_replica_without_a_gpu_goes_where_there_is_none() -> None:
    cpu_only, needs_gpu = workers({"cpus": 2}, {"gpus": 1, "cpus": 2})
    assert first_without_place([cpu_only, needs_gpu], [node(1, cpus=2), node(0, cpus=2)]) is None


def test_a_worker_is_deployed_after_its_helpers_and_the_larger_share_first() -> None:
    audio = WorkerConfig(id="audio", type="echo", gpus=0.1)
    small = WorkerConfig(id="small", type="echo", gpus=0.3)
    composer = WorkerConfig(id="composer", type="echo", gpus=1, uses={"audio": "audio"})
    on_cpu = WorkerConfig(id="on-cpu", type="echo", cpus=1)
    busy = WorkerConfig(id="busy", type="echo", cpus=4)
    ordered = placement_order([on_cpu, small, composer, busy, audio])
    assert [worker.id for worker in ordered] == ["audio", "composer", "small", "busy", "on-cpu"]
