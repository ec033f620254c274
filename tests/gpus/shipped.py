"""The shipped configurations for GPUs, and their memory plan on cards that are not there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rbee_serve.config import WorkerConfig
from rbee_serve.memory_plan.facts_file import facts_in_folder
from rbee_serve.memory_plan.gpu_size import parse_gpu_size
from rbee_serve.memory_plan.needs import MemoryNeeds
from rbee_serve.memory_plan.plan import MemoryPlan, plan_memory
from rbee_serve.memory_plan.worker_needs import worker_needs
from rbee_serve.supervisor.checks import check_file
from rbee_serve.worker.registry import import_path, load_spec

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests" / "gpus" / "models"
OLD_FILE = ROOT / "tests" / "gpus" / "configurations" / "seven_workers_24gb.yaml"

SHIPPED: dict[str, tuple[str, ...]] = {
    "serve_config.gpu.yaml": ("24GiB",),
    "configs/gpu-12gb.yaml": ("12GiB",),
    "configs/gpu-80gb.yaml": ("80GiB",),
    "configs/gpu-2x24gb.yaml": ("24GiB", "24GiB"),
}
"""The GPUs for which each file is."""


def plan_of(path: Path, sizes: Sequence[str]) -> MemoryPlan:
    """The plan of a file with the facts of `tests/gpus/models`."""
    checked, facts = check_file(path), facts_in_folder(MODELS)

    def needs_of(worker: WorkerConfig, gpu_bytes: int) -> MemoryNeeds:
        spec = load_spec(import_path(worker.type, worker.task, checked.worker_types))
        return worker_needs(worker, spec, facts[worker.model_ref] if worker.model_ref else None, gpu_bytes)

    return plan_memory(checked.config.workers, [parse_gpu_size(size) for size in sizes], needs_of)
