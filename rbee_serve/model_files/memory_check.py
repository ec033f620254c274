"""Whether a model fits into memory, from the headers of its files, before a loader reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psutil

from rbee_serve.errors import InsufficientResources, InsufficientVram
from rbee_serve.gpu_budget import CONTEXT_BYTES, budget_bytes
from rbee_serve.model_files.ctranslate2_header import read_ctranslate2_header
from rbee_serve.model_files.safetensors_header import read_safetensors_header
from rbee_serve.model_files.weight_files import weights_in
from rbee_serve.nvml import NvmlUnavailable
from rbee_serve.worker.gpu_limit import gpu_memories
from rbee_serve.worker.spec import Device

_FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
_ELEMENT_BYTES = {
    "float16": 2, "half": 2, "bfloat16": 2, "float32": 4, "float": 4, "float8_e4m3fn": 1, "float4_e2m1fn_x2": 0.5,
}  # fmt: skip
_COMPUTE_TYPES = {
    "float32": (4, 4), "float16": (2, 2), "bfloat16": (2, 2), "int16": (2, 4), "int8": (1, 4), "int8_float32": (1, 4),
    "int8_float16": (1, 2), "int8_bfloat16": (1, 2),
}  # fmt: skip
"""Bytes of an element of a matrix and of another tensor, by CTranslate2's compute type
(https://opennmt.net/CTranslate2/quantization.html)."""


def weights_memory_bytes(path: Path, dtype: str | None = None) -> int:
    """Bytes in memory of a safetensors file, or of those in a folder and its subfolders that are loaded.

    Floats count as `dtype` (torch's name), or as stored if that is None or `auto`. Quantised weights count as stored.

    Raises `ConfigurationError` for a broken file.
    """
    element_bytes = _ELEMENT_BYTES.get(dtype or "auto")
    return sum(
        int(tensor.elements * element_bytes) if element_bytes and tensor.type in _FLOATS else tensor.size_bytes
        for file in ([path] if path.is_file() else [path / name for name in weights_in(path, dtype).names])
        for tensor in read_safetensors_header(file).tensors
    )


def ctranslate2_memory_bytes(path: Path, compute_type: str) -> int:
    """Bytes in memory of a CTranslate2 model, `model.bin`, which is converted to `compute_type` while it is loaded; as
    stored for a type that depends on the hardware, such as `auto`.

    Raises `ConfigurationError` for a broken file.
    """
    header = read_ctranslate2_header(path)
    if compute_type not in _COMPUTE_TYPES:
        return header.weights_bytes
    of_matrix, of_other = _COMPUTE_TYPES[compute_type]
    return header.matrix_elements * of_matrix + header.other_elements * of_other


def require_memory(device: Device, needs: Mapping[str, int], share: float | None = None) -> None:
    """Check that the bytes that a model `needs`, by purpose (such as `weights`), are free on its devices together.

    On a GPU the model may use the worker's budget (`rbee_serve.gpu_budget`), or the part `share` of the GPU if the
    engine has such a limit of its own, and no more than is free beside its CUDA context. Several GPUs hold equal parts
    of the model, so each counts as much as the one with the least. If the driver does not report memory, all is
    accepted.

    Raises `InsufficientVram` on a GPU, else `InsufficientResources`, with the numbers.
    """
    needed = sum(needs.values())
    listed = " and ".join(f"{_gb(count)} of {purpose}" for purpose, count in needs.items())
    if device.accelerator == "cuda":
        free = _free_vram_bytes(device, share)
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


def _free_vram_bytes(device: Device, share: float | None) -> int | None:
    try:
        memories = gpu_memories(device)
    except NvmlUnavailable:
        return None
    return len(memories) * min(
        min(
            budget_bytes(memory.total, device.fraction) if share is None else int(share * memory.total),
            max(0, memory.free - CONTEXT_BYTES),
        )
        for memory in memories
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
