"""Where a replica runs."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.worker.spec import Device, WorkerSpec


def choose_device(worker: WorkerConfig, spec: WorkerSpec[Any], gpu_ids: Sequence[str]) -> Device:
    """The device of this replica.

    `gpu_ids` are the GPUs that Ray gave to it, as CUDA numbers them on the machine. Raises `ConfigurationError` where
    the configuration asks for what the worker type or the machine cannot do.
    """
    accelerator = worker.backend
    if accelerator == "auto":
        accelerator = (
            "cuda" if worker.gpus else "metal" if "metal" in spec.accelerators and _metal_is_there() else "cpu"
        )
    if accelerator not in spec.accelerators:
        able = ", ".join(sorted(spec.accelerators))
        raise ConfigurationError(
            f"worker {worker.id}: a {spec.name} worker cannot run on {accelerator}; it runs on {able}"
        )
    if accelerator == "cuda":
        if not gpu_ids:
            raise ConfigurationError(
                f"worker {worker.id}: accelerator cuda needs `gpus` of at least a fraction, such as 1"
            )
        indices = tuple(sorted(int(gpu) for gpu in gpu_ids))
        return Device("cuda", indices, worker.gpus if worker.gpus < 1 else 1.0)
    if accelerator == "metal" and not _metal_is_there():
        raise ConfigurationError(f"worker {worker.id}: accelerator metal needs a Mac with Apple silicon")
    return Device(accelerator)


def _metal_is_there() -> bool:
    # Only a Mac can have Metal, so nobody else pays for the import.
    if sys.platform != "darwin":
        return False
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError:
        return False
    return bool(torch.backends.mps.is_available())


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


def set_threads(worker: WorkerConfig) -> None:
    """Give torch the configured number of threads, where torch is used at all and a number is configured.

    Ray sets `OMP_NUM_THREADS=1` in an actor that asks for no CPU; the environment of a replica is set by the
    application, this is for what torch has already read.
    """
    if worker.threads is not None and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(worker.threads)
