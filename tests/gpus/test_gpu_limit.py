"""What engines are given as their limit on GPU memory: one formula for vLLM, for torch and for the memory check."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from deployments.torch_runtime.device import torch_device
from deployments.vllm_runtime.engine_options import engine_options
from rbee_serve.config import WorkerConfig
from rbee_serve.gpu_budget import CONTEXT_BYTES, MAX_SHARE, budget_bytes
from rbee_serve.worker.gpu_limit import memory_fraction
from rbee_serve.worker.spec import Device, LoadContext
from tests.gpus.fake_nvml import GIB, FakeGpu, FakeNvml


def machine(monkeypatch: pytest.MonkeyPatch, *totals_gib: float, broken: bool = False) -> None:
    gpus = [FakeGpu(total=int(total * GIB), uuid=f"GPU-{n}") for n, total in enumerate(totals_gib)]
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(*gpus, broken=broken))


def vllm_limit(device: Device) -> float:
    worker = WorkerConfig(id="llm-0", type="llm", gpus=device.fraction)
    return float(engine_options(LoadContext(worker, device, lambda _: None), Path("/m"))["gpu_memory_utilization"])


def torch_limit(device: Device, monkeypatch: pytest.MonkeyPatch) -> float:
    limits: list[float] = []
    cuda = SimpleNamespace(is_available=lambda: True, set_per_process_memory_fraction=limits.append)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert torch_device(device) == "cuda"
    return limits[0]


@pytest.mark.parametrize(
    ("total_gib", "share", "budget_gib"), [(24, 0.25, 5.5), (24, 0.03, 0.22), (80, 0.5, 39.5), (24, 0.02, 0)]
)
def test_the_budget_is_the_share_without_a_cuda_context(total_gib: int, share: float, budget_gib: float) -> None:
    assert budget_bytes(total_gib * GIB, share) == pytest.approx(budget_gib * GIB)


@pytest.mark.parametrize("total_gib", [12, 24, 80])
def test_a_whole_gpu_leaves_memory_for_what_no_engine_counts(total_gib: int) -> None:
    budget = budget_bytes(total_gib * GIB, 1.0)
    assert total_gib * GIB - budget - CONTEXT_BYTES == pytest.approx((1 - MAX_SHARE) * total_gib * GIB, abs=1)


@pytest.mark.parametrize("share", [0.25, 0.4, 1.0])
def test_vllm_and_torch_get_the_same_limit(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    machine(monkeypatch, 24)
    device = Device("cuda", ("0",), share)
    expected = budget_bytes(24 * GIB, share) / (24 * GIB)
    assert memory_fraction(device) == pytest.approx(expected)
    assert vllm_limit(device) == pytest.approx(expected, abs=1e-4)
    assert torch_limit(device, monkeypatch) == pytest.approx(expected)


def test_two_engines_on_one_gpu_take_no_more_than_the_gpu_with_their_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 24)
    taken = sum(memory_fraction(Device("cuda", ("0",), share)) * 24 * GIB + CONTEXT_BYTES for share in (0.7, 0.3))
    assert taken == pytest.approx(24 * GIB)


def test_the_smallest_of_several_gpus_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 80, 24, 48)
    assert memory_fraction(Device("cuda", ("0", "1"))) == memory_fraction(Device("cuda", ("1",)))
    assert memory_fraction(Device("cuda", ("0", "2"))) > memory_fraction(Device("cuda", ("0", "1")))


def test_without_a_driver_the_limit_is_a_part_of_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 24, broken=True)
    assert memory_fraction(Device("cuda", ("0",), 0.5)) == pytest.approx(0.45)
