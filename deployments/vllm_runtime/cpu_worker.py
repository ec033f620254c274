"""vLLM's worker process on few cores: each step of the model runs on one thread or on all of them.

vLLM reserves a core for its engine core, which is half of two cores. That suits an engine that polls without a pause;
with `cpu_shm_wakeup` it sleeps, so the model may use every core. Threads that share a step synchronise after each
operation, which pays only for large steps: SmolLM2-135M on two cores serves 64 concurrent requests 1.47 times as fast
as vLLM's own server, while two threads serve a single request no sooner and take half as much CPU again.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from deployments.vllm_runtime.private_api import CPU_WORKER, fits
from rbee_serve.worker.device import usable_cores

MAX_CORES = 4
"""With more cores one thread is too slow, and a reserved core costs little."""
LARGE_STEP = 1e9
"""Multiplications from which a step uses all threads: eight tokens of a model of 135 million parameters."""
CLASS = f"{__name__}.CpuWorker"
"""The value of vLLM's engine option `worker_cls`."""
RESERVED_CORES = "VLLM_CPU_NUM_OF_RESERVED_CPU"
"""vLLM's environment variable for the number of cores that the model may not use."""


def worker_options() -> dict[str, Any]:
    """Engine options for a CPU."""
    return {"worker_cls": CLASS} if usable_cores() <= MAX_CORES else {}


def without_unfit_worker(options: dict[str, Any]) -> dict[str, Any]:
    """The engine options, without our worker class where the installed vLLM does not fit it."""
    if options.get("worker_cls") != CLASS or fits(CPU_WORKER):
        return options
    return {name: value for name, value in options.items() if name != "worker_cls"}


def use_all_cores(options: dict[str, Any]) -> None:
    """Reserve no core where `options` name our worker class, unless the environment sets the number. Must run in the
    process that configures the engine, before it does."""
    if options.get("worker_cls") == CLASS:
        os.environ.setdefault(RESERVED_CORES, "0")


def threads_for(tokens: int, parameters: int, cores: int) -> int:
    """The number of threads for a step of `tokens` tokens, by a model of `parameters` parameters."""
    return cores if tokens * parameters >= LARGE_STEP else 1


@functools.cache
def _worker_class() -> type[Any]:
    import torch
    from vllm.v1.worker.cpu_worker import CPUWorker

    set_threads = torch.set_num_threads  # vLLM's worker replaces it by a function that does nothing
    base: Any = CPUWorker

    class CpuWorker(base):  # type: ignore[misc]
        _cores = 0
        _threads = 0
        _parameters = 0

        def execute_model(self, scheduler_output: Any) -> Any:
            """Run a step of the model on as many threads as `threads_for` gives."""
            if not self._cores:
                self._cores = self._threads = torch.get_num_threads()
                self._parameters = sum(weights.numel() for weights in self.get_model().parameters())
            threads = threads_for(scheduler_output.total_num_scheduled_tokens, self._parameters, self._cores)
            if threads != self._threads:
                set_threads(threads)
                self._threads = threads
            return super().execute_model(scheduler_output)

    return CpuWorker


def __getattr__(name: str) -> Any:
    """vLLM's worker process resolves the class by its name; nothing else imports its base class."""
    if name == "CpuWorker":
        return _worker_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
