"""torch's CUDA module as tests see it: GPUs with the bytes that torch has reserved on them.

monkeypatch.setitem(sys.modules, "torch.cuda", FakeTorchCuda(5 * GIB))
"""

from __future__ import annotations

from types import ModuleType


class FakeTorchCuda(ModuleType):
    """Takes the place of `torch.cuda`."""

    def __init__(self, *reserved: int, initialized: bool = True) -> None:
        super().__init__("torch.cuda")
        self._reserved = reserved
        self._initialized = initialized

    def is_initialized(self) -> bool:
        return self._initialized

    def device_count(self) -> int:
        return len(self._reserved)

    def memory_reserved(self, index: int) -> int:
        return self._reserved[index]
