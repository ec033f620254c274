"""How many threads a step of vLLM's model gets on a CPU."""

from __future__ import annotations

import os
import sys

import pytest

from deployments import vllm_cpu_worker
from deployments.vllm_cpu_worker import CLASS, threads_for, worker_options

RESERVED = "VLLM_CPU_NUM_OF_RESERVED_CPU"
SMALL, LARGE = 6_500_000, 135_000_000


@pytest.mark.parametrize(
    ("tokens", "parameters", "expected"),
    [(1, LARGE, 1), (7, LARGE, 1), (8, LARGE, 4), (64, LARGE, 4), (32, SMALL, 1), (2048, SMALL, 4), (0, LARGE, 1),
     (1, 2_000_000_000, 4)],
)  # fmt: skip
def test_all_threads_work_on_a_step_that_is_large(tokens: int, parameters: int, expected: int) -> None:
    assert threads_for(tokens, parameters, 4) == expected


@pytest.mark.parametrize(
    ("cores", "chosen", "expected"), [(2, None, "0"), (4, None, "0"), (5, None, None), (64, None, None), (2, "1", "1")]
)
def test_on_few_cores_none_is_kept_from_the_model_unless_somebody_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, cores: int, chosen: str | None, expected: str | None
) -> None:
    monkeypatch.setattr(vllm_cpu_worker, "usable_cores", lambda: cores)
    monkeypatch.setenv(RESERVED, chosen or "")
    if chosen is None:
        monkeypatch.delenv(RESERVED)
    assert worker_options() == ({"worker_cls": CLASS} if cores <= 4 else {})
    assert os.environ.get(RESERVED) == expected


def test_the_class_is_there_by_name_and_nothing_heavy_before_it_is_asked_for() -> None:
    module, _, name = CLASS.rpartition(".")
    assert (sys.modules[module], name) == (vllm_cpu_worker, "CpuWorker")
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        vllm_cpu_worker.Other  # noqa: B018


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
def test_threads_change_only_where_another_number_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace
    from typing import Any

    import torch
    from vllm.v1.worker.cpu_worker import CPUWorker

    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(CPUWorker, "execute_model", lambda self, step: step.total_num_scheduled_tokens)
    vllm_cpu_worker._worker.cache_clear()
    kind: Any = vllm_cpu_worker.CpuWorker
    vllm_cpu_worker._worker.cache_clear()
    worker = kind.__new__(kind)
    worker.get_model = lambda: torch.nn.Linear(10_000, 10_000, bias=False, device="meta")
    steps = (1, 10, 64, 3, 3, 100)
    assert [worker.execute_model(SimpleNamespace(total_num_scheduled_tokens=n)) for n in steps] == list(steps)
    assert chosen == [1, 2, 1, 2]
