"""The number of threads of a step of vLLM's model on a CPU."""

from __future__ import annotations

import os
import sys

import pytest

from deployments.vllm_runtime import cpu_worker
from deployments.vllm_runtime.cpu_worker import CLASS, RESERVED_CORES, threads_for, use_all_cores, worker_options

SMALL, LARGE = 6_500_000, 135_000_000


@pytest.mark.parametrize(
    ("tokens", "parameters", "expected"),
    [(1, LARGE, 1), (7, LARGE, 1), (8, LARGE, 4), (64, LARGE, 4), (32, SMALL, 1), (2048, SMALL, 4), (0, LARGE, 1),
     (1, 2_000_000_000, 4)],
)  # fmt: skip
def test_a_large_step_uses_all_threads(tokens: int, parameters: int, expected: int) -> None:
    assert threads_for(tokens, parameters, 4) == expected


@pytest.mark.parametrize(("cores", "ours"), [(2, True), (4, True), (5, False), (64, False)])
def test_our_worker_class_is_for_few_cores(monkeypatch: pytest.MonkeyPatch, cores: int, ours: bool) -> None:
    monkeypatch.setattr(cpu_worker, "usable_cores", lambda: cores)
    assert worker_options() == ({"worker_cls": CLASS} if ours else {})


@pytest.mark.parametrize(
    ("worker", "chosen", "expected"), [(CLASS, None, "0"), (CLASS, "1", "1"), ("other.Worker", None, None)]
)
def test_no_core_is_reserved_beside_our_worker_class_unless_the_environment_says_so(
    monkeypatch: pytest.MonkeyPatch, worker: str, chosen: str | None, expected: str | None
) -> None:
    monkeypatch.setenv(RESERVED_CORES, chosen or "")
    if chosen is None:
        monkeypatch.delenv(RESERVED_CORES)
    use_all_cores({"worker_cls": worker})
    assert os.environ.get(RESERVED_CORES) == expected


def test_the_module_resolves_the_class_by_its_name() -> None:
    module, _, name = CLASS.rpartition(".")
    assert (sys.modules[module], name) == (cpu_worker, "CpuWorker")
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        cpu_worker.Other  # noqa: B018


@pytest.mark.vllm
def test_the_number_of_threads_changes_only_with_the_size_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace
    from typing import Any

    import torch
    from vllm.v1.worker.cpu_worker import CPUWorker

    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(CPUWorker, "execute_model", lambda self, step: step.total_num_scheduled_tokens)
    cpu_worker._worker_class.cache_clear()
    kind: Any = cpu_worker.CpuWorker
    cpu_worker._worker_class.cache_clear()
    worker = kind.__new__(kind)
    worker.get_model = lambda: torch.nn.Linear(10_000, 10_000, bias=False, device="meta")
    steps = (1, 10, 64, 3, 3, 100)
    assert [worker.execute_model(SimpleNamespace(total_num_scheduled_tokens=n)) for n in steps] == list(steps)
    assert chosen == [1, 2, 1, 2]
