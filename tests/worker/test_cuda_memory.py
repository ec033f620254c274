"""What a worker holds on its GPUs, where the driver reports it by process and where it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from rbee_serve.gpu_budget import CONTEXT_BYTES
from rbee_serve.worker.cuda_memory import cuda_memory, torch_cuda_bytes
from rbee_serve.worker.spec import Device
from tests.gpus.fake_nvml import GIB, FakeGpu, FakeNvml
from tests.gpus.fake_torch_cuda import FakeTorchCuda

FOREIGN = 4_194_304 + 7
"""A process id above Linux's largest one: no process here has it."""
ONE = Device("cuda", ("0",), 0.5)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """A GPU of 24 GiB, one of 80, and one of 40 with a MIG instance of 10; torch is not loaded."""
    split = FakeGpu(40 * GIB, uuid="GPU-c")
    part = FakeGpu(10 * GIB, uuid="MIG-d", parent=split)
    driver = FakeNvml(FakeGpu(24 * GIB), FakeGpu(80 * GIB, uuid="GPU-b"), split, part)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setitem(sys.modules, "torch.cuda", FakeTorchCuda(initialized=False))
    return driver


@pytest.fixture
def child() -> Iterator[int]:
    """The id of a process below this one."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.communicate()


def nothing() -> int:
    """An engine that reports nothing."""
    return 0


def test_the_driver_counts_this_process_and_its_descendants_on_their_gpus(driver: FakeNvml, child: int) -> None:
    driver.gpus[0].processes = {os.getpid(): 1 * GIB, child: 2 * GIB, FOREIGN: 9 * GIB}
    driver.gpus[1].processes = {child: 4 * GIB}
    assert cuda_memory(ONE, nothing) == (3 * GIB, "driver")
    assert cuda_memory(Device("cuda", ("0", "GPU-b")), nothing) == (7 * GIB, "driver")


@pytest.mark.parametrize("held", [{FOREIGN: 3 * GIB}, {os.getpid(): None}, {os.getpid(): 0}, {}])
def test_where_the_driver_does_not_count_it_torch_does_with_a_context_for_each_gpu(
    driver: FakeNvml, held: dict[int, int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.gpus[0].processes = held
    monkeypatch.setitem(sys.modules, "torch.cuda", FakeTorchCuda(5 * GIB, 0, 3 * GIB))
    assert cuda_memory(ONE, lambda: GIB) == (8 * GIB + 2 * CONTEXT_BYTES, "torch")


def test_a_process_without_a_number_makes_the_drivers_sum_worthless(driver: FakeNvml, child: int) -> None:
    driver.gpus[0].processes = {os.getpid(): GIB, child: None}
    assert cuda_memory(ONE, lambda: 6 * GIB) == (6 * GIB, "engine")


@pytest.mark.usefixtures("driver")
def test_without_torch_in_this_process_the_engines_processes_are_believed() -> None:
    assert cuda_memory(ONE, lambda: 6 * GIB) == (6 * GIB, "engine")


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("device", "share"),
    [
        (Device("cuda", ("0",)), 24 * GIB),
        (Device("cuda", ("0",), 0.25), 6 * GIB),
        (Device("cuda", ("GPU-b", "0")), 104 * GIB),
        (Device("cuda", ("MIG-d",), 0.5), 5 * GIB),
        (Device("cuda", ("2",), 0.5), 5 * GIB),
    ],
)
def test_what_nobody_counts_is_the_share_of_the_gpu_or_of_the_mig_instance(device: Device, share: int) -> None:
    assert cuda_memory(device, nothing) == (share, "share")


def test_without_a_driver_the_memory_is_torchs_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setitem(sys.modules, "torch.cuda", FakeTorchCuda(initialized=False))
    assert cuda_memory(ONE, nothing) == (0, None)
    monkeypatch.setitem(sys.modules, "torch.cuda", FakeTorchCuda(GIB))
    assert cuda_memory(ONE, nothing) == (GIB + CONTEXT_BYTES, "torch")


def test_torch_that_is_missing_or_being_imported_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.cuda", ModuleType("torch.cuda"))
    assert torch_cuda_bytes() == 0
    monkeypatch.delitem(sys.modules, "torch.cuda")
    assert torch_cuda_bytes() == 0
