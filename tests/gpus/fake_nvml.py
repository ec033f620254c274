"""NVIDIA's driver library as tests see it: GPUs with the memory, processes and versions that a test gives them.

machine = FakeNvml(FakeGpu(total=24 * GIB), FakeGpu(uuid="GPU-b", capability=(7, 0)))
monkeypatch.setitem(sys.modules, "pynvml", machine)
"""

# ruff: noqa: N802  (pynvml's names)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

GIB = 1024**3


class NVMLError(Exception):
    """As pynvml raises it."""


@dataclass
class FakeGpu:
    """One GPU, or one MIG instance of a GPU if it has a `parent`, which is in MIG mode then. `used` are the bytes of
    all processes together."""

    total: int = 24 * GIB
    used: int = 0
    uuid: str = "GPU-a"
    name: str = "NVIDIA Test"
    capability: tuple[int, int] = (8, 9)
    processes: Mapping[int, int | None] = field(default_factory=dict)
    parent: FakeGpu | None = None


class FakeNvml:
    """Takes the place of the module `pynvml`. `cuda_driver` is what the driver supports, such as 13000."""

    NVMLError = NVMLError

    def __init__(self, *gpus: FakeGpu, cuda_driver: int = 13000, broken: bool = False) -> None:
        self.gpus = list(gpus)
        self.whole = [gpu for gpu in gpus if gpu.parent is None]
        self.cuda_driver = cuda_driver
        self.broken = broken
        self.inits = 0

    def nvmlInit(self) -> None:
        self.inits += 1
        if self.broken:
            raise NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.whole)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        if index >= len(self.whole):
            raise NVMLError("Invalid Argument")
        return self.whole[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:
        for gpu in self.gpus:
            if gpu.uuid == uuid:
                return gpu
        raise NVMLError("Not Found")

    def nvmlDeviceGetMigMode(self, handle: FakeGpu) -> list[int]:
        if handle.capability < (8, 0):
            raise NVMLError("Not Supported")
        enabled = int(any(gpu.parent is handle for gpu in self.gpus))
        return [enabled, enabled]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: FakeGpu) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: FakeGpu, index: int) -> FakeGpu:
        instances = [gpu for gpu in self.gpus if gpu.parent is handle]
        if not 1 <= index <= len(instances):  # the first place is a gap
            raise NVMLError("Not Found")
        return instances[index - 1]

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: FakeGpu) -> FakeGpu:
        assert handle.parent is not None
        return handle.parent

    def nvmlDeviceGetIndex(self, handle: FakeGpu) -> int:
        return next(index for index, gpu in enumerate(self.whole) if gpu is handle)

    def nvmlDeviceGetUUID(self, handle: FakeGpu) -> str:
        return handle.uuid

    def nvmlDeviceGetName(self, handle: FakeGpu) -> str:
        return handle.name

    def nvmlDeviceGetMemoryInfo(self, handle: FakeGpu) -> Any:
        return SimpleNamespace(total=handle.total, free=handle.total - handle.used, used=handle.used)

    def nvmlDeviceGetCudaComputeCapability(self, handle: FakeGpu) -> tuple[int, int]:
        return handle.capability

    def nvmlDeviceGetComputeRunningProcesses(self, handle: FakeGpu) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in handle.processes.items()]

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return self.cuda_driver
