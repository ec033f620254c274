from __future__ import annotations

from typing import Any

import pytest

from rbee_serve.config import WorkerConfig
from rbee_serve.supervisor.resources import shortage


def workers(*settings: dict[str, Any]) -> list[WorkerConfig]:
    names = iter("abcdef")
    return [WorkerConfig(id=next(names), type="echo", **{"cpus": 0, **setting}) for setting in settings]


@pytest.mark.parametrize(
    ("settings", "gpus"),
    [
        ([{}], 0),
        ([{"gpus": 1}], 1),
        ([{"gpus": 2, "replicas": 2}], 4),
        ([{"gpus": 0.5}, {"gpus": 0.5}], 1),
        ([{"gpus": 0.4}, {"gpus": 0.6}, {"gpus": 1}], 2),
        ([{"gpus": 0.6, "replicas": 3}], 3),
        ([{"gpus": 0.1, "replicas": 10}], 1),
    ],
)
def test_an_exact_fit_is_no_shortage_and_one_gpu_less_is(settings: list[dict[str, Any]], gpus: int) -> None:
    assert shortage(workers(*settings), {"CPU": 2, "GPU": gpus}) is None
    if gpus:
        assert "GPU" in str(shortage(workers(*settings), {"CPU": 2, "GPU": gpus - 1}))


def test_the_sentence_lists_the_requests_and_what_to_do() -> None:
    assert shortage(workers({"gpus": 1}, {"gpus": 0.5, "replicas": 2}), {"CPU": 2}) == (
        "the workers request 2 GPUs (a 1, b 1), this machine has 0: lower `gpus` or `replicas`"
    )
    assert shortage(workers({"cpus": 3}), {"CPU": 2}) == (
        "the workers request 3 CPU cores (a 3), this machine has 2: lower `cpus` or `replicas`"
    )
