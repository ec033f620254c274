from __future__ import annotations

from typing import Any

import pytest

from rbee_serve.config import WorkerConfig
from rbee_serve.supervisor.resources import shortage


def workers(*settings: dict[str, Any]) -> list[WorkerConfig]:
    names = iter("abcdef")
    return [WorkerConfig(id=next(names), type="echo", **{"cpus": 0, **setting}) for setting in settings]


def machines(*resources: dict[str, float]) -> list[dict[str, Any]]:
    """Entries of `ray.nodes()`, as far as they are read."""
    return [
        {"Alive": True, "NodeManagerAddress": f"10.0.0.{n}", "Resources": {"CPU": 2.0, "memory": 1e9, **found}}
        for n, found in enumerate(resources, 1)
    ]


@pytest.mark.parametrize(
    ("settings", "gpus"),
    [
        ([{}], 0),
        ([{"gpus": 1}], 1),
        ([{"gpus": 2, "replicas": 2}], 4),
        ([{"gpus": 0.5}, {"gpus": 0.5}], 1),
        ([{"gpus": 0.4}, {"gpus": 0.6}, {"gpus": 1}], 2),
        ([{"gpus": 0.4, "replicas": 2}, {"gpus": 0.6, "replicas": 2}], 2),
        ([{"gpus": 0.6, "replicas": 3}], 3),
        ([{"gpus": 0.1, "replicas": 10}], 1),
    ],
)
def test_an_exact_fit_is_no_shortage_and_one_gpu_less_is(settings: list[dict[str, Any]], gpus: int) -> None:
    assert shortage(workers(*settings), machines({"GPU": gpus})) is None
    if gpus:
        assert "GPU" in str(shortage(workers(*settings), machines({"GPU": gpus - 1})))


def test_the_sentence_lists_the_requests_and_what_to_do() -> None:
    assert shortage(workers({"gpus": 1}, {"gpus": 0.5, "replicas": 2}), machines({})) == (
        "the workers request 2 GPUs (a 1, b 1), this machine has 0: lower `gpus` or `replicas`"
    )
    assert shortage(workers({"cpus": 3}), machines({})) == (
        "the workers request 3 CPU cores (a 3), this machine has 2: lower `cpus` or `replicas`"
    )
    assert shortage(workers({"cpus": 1.5, "replicas": 4}), machines({}, {})) == (
        "the workers request 6 CPU cores (a 6), the 2 machines have 4: lower `cpus` or `replicas`"
    )


def test_what_one_replica_requests_has_to_be_on_one_machine() -> None:
    two_gpus = workers({"gpus": 2})
    assert shortage(two_gpus, machines({"GPU": 1}, {"GPU": 2})) is None
    assert shortage(two_gpus, machines({"GPU": 1}, {"GPU": 1})) == (
        "each replica of a requests 2 GPUs of one machine, and none has that (10.0.0.1: 1 GPU and 2 CPU cores, "
        "10.0.0.2: 1 GPU and 2 CPU cores): lower `gpus` or `cpus`"
    )
    many_cores = workers({"gpus": 1, "cpus": 8})
    assert shortage(many_cores, machines({"GPU": 1, "CPU": 8})) is None
    assert "each replica of a requests 1 GPU and 8 CPU cores" in str(
        shortage(many_cores, machines({"GPU": 1, "CPU": 4}, {"CPU": 64}))
    )
    assert "each replica of a requests 3 CPU cores of one" in str(shortage(workers({"cpus": 3}), machines({}, {})))


def test_replicas_that_fit_alone_and_not_together_are_a_shortage() -> None:
    assert shortage(workers({"gpus": 2}, {"gpus": 1}), machines({"GPU": 2}, {"GPU": 1})) is None
    assert shortage(workers({"gpus": 2, "replicas": 2}), machines({"GPU": 3}, {"GPU": 1})) == (
        "beside the other replicas, the machines (10.0.0.1: 3 GPUs and 2 CPU cores, 10.0.0.2: 1 GPU and 2 CPU cores) "
        "have no place for one of a, which requests 2 GPUs of one machine: lower `gpus`, `cpus` or `replicas`"
    )


def test_a_machine_that_has_left_does_not_count() -> None:
    found = machines({"GPU": 1}, {"GPU": 1})
    found[1]["Alive"] = False
    assert "this machine has 1" in str(shortage(workers({"gpus": 1, "replicas": 2}), found))
