"""What a model needs of memory before vLLM can load it, from its files' headers and the engine's options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rbee_serve.model_files.json_file import read_json
from rbee_serve.model_files.memory_check import weights_memory_bytes

GIB = 1024**3

_STORED_QUANTISATION = ("quantization_config", "compression_config")
"""Keys of a model's `config.json` that describe weights which are stored quantised."""
_FOUR_BITS = re.compile(r"(?:fp|int)4")


def memory_needs(model: Path, options: dict[str, Any]) -> dict[str, int]:
    """Bytes by purpose, on all devices together; nothing where the options leave the amount open.

    It is a lower bound: weights count in the type that vLLM converts or quantises them to while it loads them, without
    what it keeps in the memory of the host (`cpu_offload_gb`). vLLM itself measures the rest.
    """
    needs = {}
    devices = int(options.get("tensor_parallel_size", 1)) * int(options.get("pipeline_parallel_size", 1))
    if not options.get("offload_group_size"):  # layers in the host's memory, which the headers do not show
        weights = weights_memory_bytes(model, _element_type(model, options))
        offloaded = int((options.get("cpu_offload_gb") or 0) * GIB) * devices
        needs["weights"] = max(0, weights - offloaded)
    if cache := options.get("kv_cache_memory_bytes"):
        needs["KV cache"] = int(cache) * devices
    return needs


def _element_type(model: Path, options: dict[str, Any]) -> str:
    """torch's name of the type in which vLLM keeps weights that are stored as floats."""
    quantisation = " ".join(str(options[name]) for name in ("quantization", "quantization_config") if options.get(name))
    if quantisation and not _is_stored_quantised(model):
        return "float4_e2m1fn_x2" if _FOUR_BITS.search(quantisation) else "float8_e4m3fn"
    dtype = options.get("dtype") or "auto"
    # vLLM's `auto` keeps half precision and converts float32 to it.
    return "bfloat16" if dtype == "auto" else str(dtype)


def _is_stored_quantised(model: Path) -> bool:
    config = model / "config.json"
    return config.is_file() and any(map(read_json(config).get, _STORED_QUANTISATION))
