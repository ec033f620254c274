"""How vLLM divides a model among the GPUs of a worker.

    tensor_parallel_size * pipeline_parallel_size * data_parallel_size = gpus

The last two are options of the configuration; the first follows from `gpus`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError

OTHER_SIZES = ("pipeline_parallel_size", "data_parallel_size", "prefill_context_parallel_size")
"""vLLM's options that multiply the GPUs it needs, beside `tensor_parallel_size`."""


def parallel_size(engine: Mapping[str, Any], name: str) -> int:
    """An option of `engine:`, written with `_` or `-`; 1 if it is left out or no positive whole number."""
    value = engine.get(name, engine.get(name.replace("_", "-"), 1))
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 1


def tensor_parallel_size(gpus: float, engine: Mapping[str, Any]) -> int:
    """The GPUs among which each layer is divided."""
    return max(1, int(gpus) // math.prod(parallel_size(engine, name) for name in OTHER_SIZES))


def check_parallel_sizes(worker: WorkerConfig) -> None:
    """Raise `ConfigurationError` where the parallel sizes do not multiply to `gpus`. A worker without GPUs is not
    checked."""
    sizes = {name: parallel_size(worker.engine, name) for name in OTHER_SIZES}
    needed = math.prod(sizes.values())
    if not worker.gpus or needed == 1 or (worker.gpus >= needed and worker.gpus % needed == 0):
        return
    product = " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1)
    raise ConfigurationError(
        f"gpus: {worker.gpus:g} is no multiple of {needed}, which {product} in engine needs; set gpus to a multiple of "
        "it, or lower the parallel sizes"
    )
