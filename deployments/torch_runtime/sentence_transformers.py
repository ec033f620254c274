"""Load models of sentence-transformers into this process, and batch their inputs."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from deployments.torch_runtime.device import torch_device
from deployments.torch_runtime.threads import BatchConcurrency
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.memory_check import require_memory, weights_memory_bytes
from rbee_serve.model_files.resolve import prepare, refuse_pickles
from rbee_serve.model_files.weight_files import weights_in
from rbee_serve.state import LoadProgress
from rbee_serve.worker.batching import Batcher
from rbee_serve.worker.registry import import_engine
from rbee_serve.worker.spec import LoadContext

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

BATCH_TOKENS = {"cpu": 1024, "metal": 8192, "cuda": 32_768}
"""Default of `batch_tokens`. Larger batches hardly speed up a small model on a CPU, and later requests wait longer."""

BATCH_OVERHEAD = {"cpu": 48, "metal": 256, "cuda": 2048}
"""Fixed cost of a batch, in tokens. Measured for all-MiniLM-L6-v2 on two CPU cores (a text of 20 tokens takes 14 ms
alone, 32 of them take 139 ms); estimated for the others."""


class ModelOptions(BaseModel):
    """Options of every engine on sentence-transformers."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """The type of the weights in memory; `auto` is the type in the files."""
    max_seq_length: Annotated[int, Field(ge=1)] | None = None
    """Maximum length of an input in tokens, where it should be lower than the model's own."""
    attn_implementation: str | None = None
    """The attention implementation of transformers, such as `sdpa`. On a CPU it disables sequence packing."""
    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Maximum tokens of a batch, padding included."""


def check_gpus(worker: WorkerConfig) -> None:
    """Raise `ConfigurationError` for more than one GPU."""
    if worker.gpus > 1:
        raise ConfigurationError("gpus: sentence-transformers uses one GPU; set replicas for more")


def load_model(kind: str, context: LoadContext, options: ModelOptions) -> tuple[Any, Path]:
    """The model, of sentence-transformers' class `kind`, and the folder of its files. Raises `ConfigurationError`,
    `InsufficientVram`, `InsufficientResources`."""
    worker, device = context.worker, context.device
    assert worker.model_ref is not None
    folder = prepare(worker.model_ref, context.report, variant_for=options.dtype)
    _refuse_pickles(folder)
    context.report(LoadProgress(stage="starting_engine"))
    sentence_transformers = import_engine("sentence_transformers", "embedding")
    context.wait_for_gpu()
    require_memory(device, {"weights": weights_memory_bytes(folder, options.dtype)})
    context.report(LoadProgress(stage="loading_to_vram"))
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)  # otherwise it shows progress bars
    model_options = {
        "dtype": options.dtype,
        "variant": weights_in(folder, options.dtype).variant,
        "attn_implementation": options.attn_implementation,
        "use_safetensors": True,
    }
    model = getattr(sentence_transformers, kind)(
        str(folder),
        device=torch_device(device),
        trust_remote_code=False,
        local_files_only=True,
        model_kwargs={name: value for name, value in model_options.items() if value is not None},
    )
    if options.max_seq_length:
        model.max_seq_length = min(options.max_seq_length, model.max_seq_length)
    return model, folder


def _refuse_pickles(folder: Path) -> None:
    """The layers after the transformer have folders of their own, which may hold pickles too."""
    modules = folder / "modules.json"
    for module in json.loads(modules.read_bytes()) if modules.is_file() else ():
        refuse_pickles(folder / str(module["path"]))


def batcher(
    run: Callable[[list[ItemT]], Iterable[ResultT]],
    tokens: Callable[[ItemT], int],
    context: LoadContext,
    options: ModelOptions,
    *,
    padded: bool = True,
) -> Batcher[ItemT, ResultT]:
    """A batcher for `run`. `tokens` is the length of an item; if `padded`, each costs as much as the longest of its
    batch."""
    accelerator = context.device.accelerator
    concurrency = BatchConcurrency(context)
    return Batcher(
        run,
        tokens,
        max_batch_cost=options.batch_tokens or BATCH_TOKENS[accelerator],
        batch_overhead=BATCH_OVERHEAD[accelerator],
        watchdog=context.watchdog,
        concurrency=concurrency.count,
        before_batch=concurrency.enter,
        padded=padded,
    )
