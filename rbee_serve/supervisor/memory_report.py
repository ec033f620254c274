"""The memory plan of a checked configuration on the terminal, before anything starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from rich.console import Console

from rbee_serve import nvml
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.memory_plan.facts_finder import FactsFinder
from rbee_serve.memory_plan.gpu_size import GpuSize, gpu_here
from rbee_serve.memory_plan.needs import MemoryNeeds
from rbee_serve.memory_plan.plan import MemoryPlan, plan_memory
from rbee_serve.memory_plan.table import print_plan
from rbee_serve.memory_plan.worker_needs import worker_needs
from rbee_serve.supervisor.checks import CheckedConfig
from rbee_serve.worker.registry import import_path, load_spec


def gpus_here() -> list[GpuSize]:
    """The GPUs of this machine that Ray would use; none without a driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    sizes = []
    with suppress(nvml.NvmlUnavailable):
        gpus = nvml.gpus() if visible is None else [nvml.gpu(each) for each in visible.split(",") if each]
        sizes = [gpu_here(gpu) for gpu in gpus]
    return sizes


def memory_plan(checked: CheckedConfig, gpus: Sequence[GpuSize], finder: FactsFinder) -> MemoryPlan:
    """The plan of the workers with GPUs on `gpus`, as their types state what they need."""

    def needs_of(worker: WorkerConfig, gpu_bytes: int) -> MemoryNeeds:
        spec = load_spec(import_path(worker.type, worker.task, checked.worker_types))
        facts = None if worker.model_ref is None else finder.find(worker.model_ref)
        return worker_needs(worker, spec, facts, gpu_bytes)

    return plan_memory(checked.config.workers, gpus, needs_of)


def report_memory(
    checked: CheckedConfig, gpus: Sequence[GpuSize], finder: FactsFinder, *, all_gpus: bool = True
) -> None:
    """Print the plan of the workers with GPUs on `gpus`, and warnings on stderr. Without `all_gpus` other machines may
    have more of them, so a worker for which none is left is a warning.

    Raises `ConfigurationError` with a line for each worker that cannot fit, and the number that would.
    """

    memory = memory_plan(checked, gpus, finder)
    print_plan(memory, Console(file=sys.stdout))
    unplaced = memory.unplaced()
    for sentence in (*finder.missing.values(), *memory.warnings(), *([] if all_gpus else unplaced)):
        print(f"rbee-serve: warning: {sentence}", file=sys.stderr)
    if refusals := [*memory.refusals(), *(unplaced if all_gpus else [])]:
        raise ConfigurationError("\n".join(f"{checked.path}: {sentence}" for sentence in refusals))
