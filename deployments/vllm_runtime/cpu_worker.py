"""vLLM's worker process on few cores: a step of the model has one thread, or all of them.

vLLM keeps a core from the model for its engine, of two the half. That is right for an engine that never sleeps; ours
does (`vllm_waiting`), so the model may have every core. Threads that share a step wait for each other after each of its
operations, which only pays where there is much to do: with SmolLM2-135M on two cores 64 requests at once are answered
1.47 times as fast as by vLLM's own server, while two threads answer a single one no sooner, for half as much CPU again.
"""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

from rbee_serve.worker.device import usable_cores

FEW_CORES = 4
"""On more of them one is little, and one that also serves would keep all others waiting."""
LARGE_STEP = 1e9
"""From so many multiplications on all threads work on a step: eight tokens of a model of 135 million parameters."""
CLASS = f"{__name__}.CpuWorker"
"""vLLM's engine option `worker_cls`."""
RESERVED_CORES = "VLLM_CPU_NUM_OF_RESERVED_CPU"
"""How many cores vLLM keeps from the model, as an environment variable."""


def worker_options() -> dict[str, Any]:
    """Engine options for a CPU."""
    return {"worker_cls": CLASS} if usable_cores() <= FEW_CORES else {}


def use_all_cores(options: dict[str, Any]) -> None:
    """Tell vLLM to keep none from our worker, unless somebody has told it otherwise. To be called with the engine's
    options in the process that configures the engine, before it does."""
    if options.get("worker_cls") == CLASS:
        os.environ.setdefault(RESERVED_CORES, "0")


def threads_for(tokens: int, parameters: int, cores: int) -> int:
    """How many threads a step of so many tokens gets, of a model of so many parameters."""
    return cores if tokens * parameters >= LARGE_STEP else 1


@functools.cache
def _worker() -> type[Any]:
    torch = importlib.import_module("torch")
    set_threads = torch.set_num_threads  # vLLM's worker puts something else in its place
    base: Any = importlib.import_module("vllm.v1.worker.cpu_worker").CPUWorker

    class CpuWorker(base):  # type: ignore[misc]
        _cores = 0
        _threads = 0
        _parameters = 0

        def execute_model(self, scheduler_output: Any) -> Any:
            """A step of the model, by as many threads as it is worth."""
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
    """vLLM asks for the class by its name, in its worker process; nobody else loads what it is made of."""
    if name == "CpuWorker":
        return _worker()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
