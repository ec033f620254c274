"""What NVIDIA's driver reports about its GPUs (NVML). It makes no CUDA context, so every process may read it.

A GPU has the id by which CUDA knows it in `CUDA_VISIBLE_DEVICES`: its number, its UUID (`GPU-…`), or the UUID of a MIG
instance (`MIG-…`). The numbers agree with CUDA's where `CUDA_DEVICE_ORDER` is `PCI_BUS_ID`, as in every replica. Of a
GPU in MIG mode CUDA uses the first instance that the process may use, and so does this module: its memory and its
processes are those of the instance.
"""

from __future__ import annotations

import functools
import importlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any


class NvmlUnavailable(Exception):
    """There is no driver, no `pynvml`, no such GPU, or the driver does not report the value."""


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Memory of one GPU or MIG instance, in bytes."""

    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU or MIG instance. Every method raises `NvmlUnavailable` where the driver does not report the value."""

    id: str
    _nvml: Any
    _whole: Any
    """The handle of the GPU."""
    _handle: Any
    """That of its MIG instance if it has any, else the same."""

    @property
    def index(self) -> int:
        """Its number on this machine, in PCI order; that of the whole GPU for a MIG instance."""
        return int(_call(self._nvml.nvmlDeviceGetIndex, self._whole))

    @property
    def uuid(self) -> str:
        """Its UUID, which no other GPU has and which stays the same."""
        return str(_call(self._nvml.nvmlDeviceGetUUID, self._handle))

    @property
    def name(self) -> str:
        """Its product name, such as `NVIDIA L4`."""
        return str(_call(self._nvml.nvmlDeviceGetName, self._handle))

    def memory(self) -> GpuMemory:
        """Its memory now."""
        memory = _call(self._nvml.nvmlDeviceGetMemoryInfo, self._handle)
        return GpuMemory(int(memory.total), int(memory.free))

    def compute_capability(self) -> tuple[int, int]:
        """Its generation, such as (8, 9)."""
        major, minor = _call(self._nvml.nvmlDeviceGetCudaComputeCapability, self._whole)
        return int(major), int(minor)

    def process_bytes(self) -> dict[int, int | None]:
        """The memory of each process that computes on it, by process id as the driver knows it. A container has other
        ids than the driver, and some drivers report no memory."""
        processes = _call(self._nvml.nvmlDeviceGetComputeRunningProcesses, self._handle)
        return {
            int(process.pid): None if process.usedGpuMemory is None else int(process.usedGpuMemory)
            for process in processes
        }


def gpu(gpu_id: str) -> Gpu:
    """The GPU of that id. Raises `NvmlUnavailable`."""
    nvml = _nvml()
    if gpu_id.startswith("MIG-"):
        instance = _call(nvml.nvmlDeviceGetHandleByUUID, gpu_id)
        return Gpu(gpu_id, nvml, _call(nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, instance), instance)
    if gpu_id.isdecimal():
        whole = _call(nvml.nvmlDeviceGetHandleByIndex, int(gpu_id))
    else:
        whole = _by_uuid(nvml, gpu_id)
    return Gpu(gpu_id, nvml, whole, _first_instance(nvml, whole) or whole)


def gpus() -> list[Gpu]:
    """All GPUs of this machine, by number; none where there is no driver."""
    with suppress(NvmlUnavailable):
        return [gpu(str(index)) for index in range(int(_call(_nvml().nvmlDeviceGetCount)))]
    return []


def driver_cuda_version() -> tuple[int, int]:
    """The newest CUDA that the driver supports, such as (13, 0). Raises `NvmlUnavailable`."""
    version = int(_call(_nvml().nvmlSystemGetCudaDriverVersion_v2))
    return version // 1000, version % 1000 // 10


def _by_uuid(nvml: Any, uuid: str) -> Any:
    """The handle of a whole GPU. Unlike NVML, CUDA accepts the beginning of a UUID."""
    with suppress(NvmlUnavailable):
        return _call(nvml.nvmlDeviceGetHandleByUUID, uuid)
    handles = [_call(nvml.nvmlDeviceGetHandleByIndex, index) for index in range(_call(nvml.nvmlDeviceGetCount))]
    found = [handle for handle in handles if str(_call(nvml.nvmlDeviceGetUUID, handle)).startswith(uuid)]
    if len(found) != 1:
        raise NvmlUnavailable(f"{len(found)} GPUs have a UUID that begins with {uuid}")
    return found[0]


def _first_instance(nvml: Any, whole: Any) -> Any:
    """The handle of its first MIG instance; None of a GPU that is not in MIG mode."""
    with suppress(NvmlUnavailable):  # most GPUs do not support MIG
        if _call(nvml.nvmlDeviceGetMigMode, whole)[0]:
            for index in range(_call(nvml.nvmlDeviceGetMaxMigDeviceCount, whole)):
                with suppress(NvmlUnavailable):  # there are gaps
                    return _call(nvml.nvmlDeviceGetMigDeviceHandleByIndex, whole, index)
    return None


def _nvml() -> Any:
    try:
        return _initialised(importlib.import_module("pynvml"))
    except ImportError as exc:
        raise NvmlUnavailable("pynvml is not installed") from exc


@functools.cache
def _initialised(nvml: Any) -> Any:
    """The module after its one `nvmlInit`. A failure is not kept: the driver may be loaded later."""
    _call(nvml.nvmlInit)
    return nvml


def _call(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as exc:  # pynvml makes a class for each error
        raise NvmlUnavailable(str(exc)) from exc
