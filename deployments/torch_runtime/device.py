"""A replica's device by torch's name."""

from __future__ import annotations

from deployments.torch_runtime.cuda_check import require_cuda
from rbee_serve.worker.gpu_limit import memory_fraction
from rbee_serve.worker.spec import Device

_NAMES = {"cuda": "cuda", "cpu": "cpu", "metal": "mps"}


def torch_device(device: Device) -> str:
    """`cuda`, `cpu` or `mps`. Limits torch's GPU memory to the worker's budget (`rbee_serve.gpu_budget`) from now on:
    Ray assigns shares but does not enforce them. Raises `ConfigurationError` if torch cannot use a GPU here."""
    if device.accelerator == "cuda":
        require_cuda()
        import torch

        torch.cuda.set_per_process_memory_fraction(memory_fraction(device))
    return _NAMES[device.accelerator]
