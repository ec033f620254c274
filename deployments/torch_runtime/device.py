"""A replica's device by torch's name."""

from __future__ import annotations

from deployments.torch_runtime.cuda_check import require_cuda
from rbee_serve.worker.spec import Device

_NAMES = {"cuda": "cuda", "cpu": "cpu", "metal": "mps"}


def torch_device(device: Device) -> str:
    """`cuda`, `cpu` or `mps`. Limits torch's GPU memory to the replica's fraction from now on: Ray assigns fractions
    but does not enforce them. Raises `ConfigurationError` if torch cannot use a GPU here."""
    if device.accelerator == "cuda":
        require_cuda()
        import torch

        torch.cuda.set_per_process_memory_fraction(device.fraction)
    return _NAMES[device.accelerator]
