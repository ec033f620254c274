"""What the driver reports: GPUs by each kind of id, and a driver that is missing, broken or loaded later."""

from __future__ import annotations

import sys

import pytest

from rbee_serve import nvml
from rbee_serve.nvml import GpuMemory, NvmlUnavailable
from tests.gpus.fake_nvml import GIB, FakeGpu, FakeNvml

SMALL = FakeGpu(16 * GIB, GIB, uuid="GPU-aaaa-1", name="NVIDIA Small", capability=(7, 5))
LARGE = FakeGpu(80 * GIB, 0, uuid="GPU-bbbb-1", name="NVIDIA Large", capability=(9, 0), processes={7: GIB, 8: None})
SPLIT = FakeGpu(40 * GIB, 9 * GIB, uuid="GPU-cccc-1", name="NVIDIA Split", capability=(8, 0), processes={5: 1, 6: 1})
PARTS = [
    FakeGpu(10 * GIB, 4 * GIB, uuid="MIG-dddd-1", name="NVIDIA Split MIG 1g.10gb", processes={9: 3}, parent=SPLIT),
    FakeGpu(20 * GIB, 5 * GIB, uuid="MIG-eeee-1", name="NVIDIA Split MIG 2g.20gb", processes={8: 4}, parent=SPLIT),
]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    machine = FakeNvml(SMALL, LARGE, SPLIT, *PARTS)
    monkeypatch.setitem(sys.modules, "pynvml", machine)
    return machine


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("gpu_id", ["1", "GPU-bbbb-1", "GPU-bbbb", "GPU-b"])
def test_a_gpu_is_found_by_its_number_its_uuid_and_the_beginning_of_one(gpu_id: str) -> None:
    gpu = nvml.gpu(gpu_id)
    assert (gpu.id, gpu.index, gpu.uuid, gpu.name) == (gpu_id, 1, "GPU-bbbb-1", "NVIDIA Large")
    assert gpu.memory() == GpuMemory(total=80 * GIB, free=80 * GIB)
    assert gpu.compute_capability() == (9, 0)
    assert gpu.process_bytes() == {7: GIB, 8: None}


@pytest.mark.usefixtures("machine")
def test_a_mig_instance_has_memory_and_processes_of_its_own_and_the_number_of_its_gpu() -> None:
    instance = nvml.gpu("MIG-eeee-1")
    assert (instance.index, instance.uuid, instance.name) == (2, "MIG-eeee-1", "NVIDIA Split MIG 2g.20gb")
    assert instance.memory() == GpuMemory(total=20 * GIB, free=15 * GIB)
    assert instance.compute_capability() == (8, 0)
    assert instance.process_bytes() == {8: 4}


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("gpu_id", ["2", "GPU-cccc-1", "GPU-c"])
def test_of_a_gpu_in_mig_mode_the_first_instance_is_used_as_by_cuda(gpu_id: str) -> None:
    gpu = nvml.gpu(gpu_id)
    assert (gpu.id, gpu.index, gpu.uuid, gpu.compute_capability()) == (gpu_id, 2, "MIG-dddd-1", (8, 0))
    assert gpu.memory() == GpuMemory(total=10 * GIB, free=6 * GIB)
    assert gpu.process_bytes() == {9: 3}


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("gpu_id", ["3", "GPU-x", "GPU-", "MIG-x", "MIG-d", ""])
def test_an_id_that_no_gpu_has_or_several_have_is_unavailable(gpu_id: str) -> None:
    with pytest.raises(NvmlUnavailable):
        nvml.gpu(gpu_id)


@pytest.mark.usefixtures("machine")
def test_the_machine_has_its_gpus_by_number_and_the_version_of_its_driver() -> None:
    assert [(gpu.id, gpu.index) for gpu in nvml.gpus()] == [("0", 0), ("1", 1), ("2", 2)]
    assert nvml.driver_cuda_version() == (13, 0)


def test_the_driver_is_initialised_once(machine: FakeNvml) -> None:
    for _ in range(3):
        nvml.gpu("0").memory()
        nvml.gpus()
    assert machine.inits == 1


def test_a_driver_that_is_loaded_later_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeNvml(SMALL, broken=True)
    monkeypatch.setitem(sys.modules, "pynvml", machine)
    for _ in range(2):
        with pytest.raises(NvmlUnavailable, match="Driver Not Loaded"):
            nvml.gpu("0")
    assert nvml.gpus() == []
    machine.broken = False
    assert nvml.gpu("0").name == "NVIDIA Small"


def test_without_pynvml_nothing_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NvmlUnavailable, match="pynvml is not installed"):
        nvml.driver_cuda_version()
    assert nvml.gpus() == []


def test_a_value_that_the_driver_does_not_report_is_unavailable(machine: FakeNvml) -> None:
    def unsupported(handle: FakeGpu) -> None:
        raise machine.NVMLError("Not Supported")

    machine.nvmlDeviceGetMemoryInfo = unsupported  # type: ignore[method-assign]
    with pytest.raises(NvmlUnavailable, match="Not Supported"):
        nvml.gpu("0").memory()
