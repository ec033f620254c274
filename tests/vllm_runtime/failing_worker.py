"""A worker of vLLM's that runs out of memory with the first request."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

_base: Any = CPUWorker


class FailingWorker(_base):  # type: ignore[misc]
    def execute_model(self, scheduler_output: Any) -> Any:
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. private")
