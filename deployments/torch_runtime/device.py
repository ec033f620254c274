"""A replica's device, as torch calls it."""

from __future__ import annotations

import importlib

from rbee_serve.worker.spec import Device

_NAMES = {"cuda": "cuda", "cpu": "cpu", "metal": "mps"}


def torch_device(device: Device) -> str:
    """`cuda`, `cpu` or `mps`. Of a GPU torch takes no more than the replica's share from now on: Ray hands out
    fractions but does not enforce them."""
    if device.accelerator == "cuda":
        importlib.import_module("torch").cuda.set_per_process_memory_fraction(device.fraction)
    return _NAMES[device.accelerator]
