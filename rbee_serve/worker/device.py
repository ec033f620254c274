"""The device of a replica, and the threads it may use."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.worker.spec import Device, WorkerSpec


def choose_device(worker: WorkerConfig, spec: WorkerSpec[Any], gpu_ids: Sequence[str]) -> Device:
    """The device of this replica.

    `gpu_ids` are the GPUs that Ray assigned to it, by their CUDA indices on the machine. Raises `ConfigurationError`
    where the worker type or the machine does not support the configured accelerator.
    """
    accelerator = worker.backend
    if accelerator == "auto":
        accelerator = "cuda" if worker.gpus else "metal" if "metal" in spec.accelerators and _has_metal() else "cpu"
    if accelerator not in spec.accelerators:
        supported = ", ".join(sorted(spec.accelerators))
        raise ConfigurationError(
            f"worker {worker.id}: a {spec.name} worker cannot run on {accelerator}; it runs on {supported}"
        )
    if accelerator == "cuda":
        if not gpu_ids:
            raise ConfigurationError(
                f"worker {worker.id}: accelerator cuda needs `gpus` of at least a fraction, such as 1"
            )
        indices = tuple(sorted(int(gpu) for gpu in gpu_ids))
        return Device("cuda", indices, worker.gpus if worker.gpus < 1 else 1.0)
    if accelerator == "metal" and not _has_metal():
        raise ConfigurationError(f"worker {worker.id}: accelerator metal needs a Mac with Apple silicon")
    return Device(accelerator)


def _has_metal() -> bool:
    # Only a Mac can have Metal, so other platforms skip the import.
    if sys.platform != "darwin":
        return False
    try:
        import torch
    except ModuleNotFoundError:
        return False
    return bool(torch.backends.mps.is_available())


def usable_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


def set_threads(worker: WorkerConfig) -> None:
    """Set the configured number of threads in torch, if torch is imported and a number is configured.

    Ray sets `OMP_NUM_THREADS=1` in an actor that reserves no CPU. The application sets the environment of a replica;
    this call covers what torch has read before.
    """
    if worker.threads is not None and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(worker.threads)
