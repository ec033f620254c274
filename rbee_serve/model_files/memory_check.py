"""Whether a model fits into memory, from the headers of its files, before a loader reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psutil

from rbee_serve import nvml
from rbee_serve.errors import InsufficientResources, InsufficientVram
from rbee_serve.model_files.safetensors_header import read_safetensors_header
from rbee_serve.model_files.weight_files import weights_in
from rbee_serve.nvml import NvmlUnavailable
from rbee_serve.worker.spec import Device

_FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
_ELEMENT_BYTES = {"float16": 2, "half": 2, "bfloat16": 2, "float32": 4, "float": 4}


def weights_memory_bytes(path: Path, dtype: str | None = None) -> int:
    """Bytes in memory of a safetensors file, or of those in a folder and its subfolders that are loaded.

    Floats count as `dtype` (torch's name), or as stored if that is None or `auto`. Quantised weights count as stored.

    Raises `ConfigurationError` for a broken file.
    """
    element_bytes = _ELEMENT_BYTES.get(dtype or "auto")
    return sum(
        tensor.elements * element_bytes if element_bytes and tensor.type in _FLOATS else tensor.size_bytes
        for file in ([path] if path.is_file() else [path / name for name in weights_in(path, dtype).names])
        for tensor in read_safetensors_header(file).tensors
    )


def require_memory(device: Device, needs: Mapping[str, int], share: float = 1.0) -> None:
    """Check that the bytes that a model `needs`, by purpose (such as `weights`), are free on its devices together.

    `share` is the part of each GPU that the model may use. If the driver does not report free memory, all is accepted.

    Raises `InsufficientVram` on a GPU, else `InsufficientResources`, with the numbers.
    """
    needed = sum(needs.values())
    listed = " and ".join(f"{_gb(count)} of {purpose}" for purpose, count in needs.items())
    if device.accelerator == "cuda":
        free = _free_vram_bytes(device.ids, share)
        if free is not None and needed > free:
            where = ", ".join(f"GPU-{gpu_id}" if gpu_id.isdecimal() else gpu_id for gpu_id in device.ids)
            raise InsufficientVram(
                f"the model needs {listed}, but {_gb(free)} are free for it on {where}; choose a smaller or quantised "
                "model, raise `gpus`, or stop other processes there"
            )
    elif needed > (free := psutil.virtual_memory().available):
        raise InsufficientResources(
            f"the model needs {listed}, but {_gb(free)} of memory are free; choose a smaller or quantised model, or "
            "stop other processes"
        )


def _free_vram_bytes(ids: tuple[str, ...], share: float) -> int | None:
    try:
        memories = [nvml.gpu(gpu_id).memory() for gpu_id in ids]
    except NvmlUnavailable:
        return None
    return sum(min(memory.free, int(share * memory.total)) for memory in memories)


def _gb(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
