"""The device of a replica, and the threads it may use."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Any

from rbee_serve import nvml
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.nvml import NvmlUnavailable
from rbee_serve.worker.spec import Device, WorkerSpec

DRIVER_TIMEOUT_S = 10.0
"""How long the numbers of GPUs are waited for. They are for information only."""


def choose_device(worker: WorkerConfig, spec: WorkerSpec[Any], gpu_ids: Sequence[str], visible: str | None) -> Device:
    """The device of this replica.

    `gpu_ids` are the GPUs that Ray assigned to it, `visible` those that CUDA shows to its process
    (`CUDA_VISIBLE_DEVICES`; all of them if that is None). Raises `ConfigurationError` where the worker type or the
    machine does not support the configured accelerator, or where the two differ.
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
        ids = tuple(visible.split(",")) if visible else ()
        if sorted(ids) != sorted(gpu_ids):
            sees = "all GPUs" if visible is None else f"GPU {visible}" if visible else "none"
            raise ConfigurationError(
                f"worker {worker.id}: Ray assigned it GPU {','.join(gpu_ids)}, but its process sees {sees} "
                "(CUDA_VISIBLE_DEVICES); start Ray without RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
            )
        return Device("cuda", ids, worker.gpus if worker.gpus < 1 else 1.0)
    if accelerator == "metal" and not _has_metal():
        raise ConfigurationError(f"worker {worker.id}: accelerator metal needs a Mac with Apple silicon")
    return Device(accelerator)


async def device_indices(device: Device) -> tuple[int, ...]:
    """The numbers of its devices on the machine, lowest first; on MIG those of the whole GPUs. The number of a UUID is
    its place in `device.ids` where the driver does not report it within `DRIVER_TIMEOUT_S`."""
    try:
        async with asyncio.timeout(DRIVER_TIMEOUT_S):
            return await asyncio.to_thread(_indices, device)
    except TimeoutError:
        return tuple(range(len(device.ids)))


def _indices(device: Device) -> tuple[int, ...]:
    return tuple(sorted({_index(device_id, place) for place, device_id in enumerate(device.ids)}))


def _index(device_id: str, place: int) -> int:
    if device_id.isdecimal():
        return int(device_id)
    try:
        return nvml.gpu(device_id).index
    except NvmlUnavailable:
        return place


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
