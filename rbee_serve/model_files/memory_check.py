"""Whether a model fits, told by its files' headers before any loader touches them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

import psutil

from rbee_serve.errors import InsufficientResources, InsufficientVram
from rbee_serve.model_files.safetensors_header import read_safetensors_header
from rbee_serve.worker.spec import Device

_FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
_ELEMENT_BYTES = {"float16": 2, "half": 2, "bfloat16": 2, "float32": 4, "float": 4}


def weights_memory_bytes(path: Path, dtype: str | None = None) -> int:
    """Bytes that a safetensors file, or those of a folder and its subfolders, take in memory, with floats of `dtype`
    (as torch calls it), or as they are stored where that is None or `auto`. Quantised numbers stay as they are.

    Raises `ConfigurationError` for a broken file.
    """
    element_bytes = _ELEMENT_BYTES.get(dtype or "auto")
    return sum(
        tensor.elements * element_bytes if element_bytes and tensor.type in _FLOATS else tensor.size_bytes
        for file in ([path] if path.is_file() else sorted(path.rglob("*.safetensors")))
        for tensor in read_safetensors_header(file).tensors
    )


def require_memory(device: Device, needs: Mapping[str, int], share: float = 1.0) -> None:
    """Make sure that what a model `needs` (bytes by purpose, such as `weights`) is free on its devices together.

    `share` is the part of each GPU that it may use. Nothing is refused where the driver does not tell what is free.

    Raises `InsufficientVram` on a GPU, else `InsufficientResources`, with the numbers.
    """
    needed = sum(needs.values())
    parts = " and ".join(f"{_gb(count)} of {purpose}" for purpose, count in needs.items())
    if device.accelerator == "cuda":
        free = _free_vram_bytes(device.indices, share)
        if free is not None and needed > free:
            where = ", ".join(f"GPU-{index}" for index in device.indices)
            raise InsufficientVram(
                f"the model needs {parts}, but {_gb(free)} are free for it on {where}; choose a smaller or quantised "
                "model, give it more of `gpus`, or end what else uses them"
            )
    elif needed > (free := psutil.virtual_memory().available):
        raise InsufficientResources(
            f"the model needs {parts}, but {_gb(free)} of memory are free; choose a smaller or quantised model, or end "
            "what else uses it"
        )


def _free_vram_bytes(indices: tuple[int, ...], share: float) -> int | None:
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        memories = [nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(index)) for index in indices]
    except Exception:  # the driver's library raises types of its own
        return None
    return sum(min(int(memory.free), int(share * memory.total)) for memory in memories)


def _gb(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
