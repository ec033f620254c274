"""Models of sentence-transformers in this process: how they are loaded, and in which batches they work."""

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
from rbee_serve.state import LoadProgress
from rbee_serve.worker.batching import Batcher
from rbee_serve.worker.registry import import_engine
from rbee_serve.worker.spec import LoadContext

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

BATCH_TOKENS = {"cpu": 1024, "metal": 8192, "cuda": 32_768}
"""Tokens of a batch, padding included, unless `batch_tokens` says otherwise. More of them make a small model on a CPU
hardly faster, but those that come meanwhile wait longer."""

BATCH_OVERHEAD = {"cpu": 48, "metal": 256, "cuda": 2048}
"""What a batch costs beside its tokens, in tokens. Measured for all-MiniLM-L6-v2 on two CPU cores (a text of 20 tokens
takes 14 ms alone, 32 of them take 139); estimated for the others."""


class ModelOptions(BaseModel):
    """What every worker on sentence-transformers understands under `engine:`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """The type of the weights; as they are stored, for `auto`."""
    max_seq_length: Annotated[int, Field(ge=1)] | None = None
    """The most tokens that are read at once, where that is to be less than the model's own."""
    attn_implementation: str | None = None
    """Which attention transformers uses, such as `sdpa`."""
    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens of a batch, padding included."""


def check_gpus(worker: WorkerConfig) -> None:
    """Raise `ConfigurationError` for more GPUs than such a model uses."""
    if worker.gpus > 1:
        raise ConfigurationError("gpus: sentence-transformers uses one GPU; take replicas for more")


def load_model(kind: str, context: LoadContext, options: ModelOptions) -> tuple[Any, Path]:
    """The model of the class `kind` of sentence-transformers, and the folder that it came from. Raises
    `ConfigurationError`, `InsufficientVram`, `InsufficientResources`."""
    worker, device = context.worker, context.device
    assert worker.model_ref is not None
    folder = prepare(worker.model_ref, context.report)
    _refuse_pickles(folder)
    require_memory(device, {"weights": weights_memory_bytes(folder, options.dtype)}, device.fraction)
    context.report(LoadProgress(stage="starting_engine"))
    sentence_transformers = import_engine("sentence_transformers", "embedding")
    context.report(LoadProgress(stage="loading_to_vram"))
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)  # it shows progress bars otherwise
    chosen = {"dtype": options.dtype, "attn_implementation": options.attn_implementation, "use_safetensors": True}
    model = getattr(sentence_transformers, kind)(
        str(folder),
        device=torch_device(device),
        trust_remote_code=False,
        local_files_only=True,
        model_kwargs={name: value for name, value in chosen.items() if value is not None},
    )
    if options.max_seq_length:
        model.max_seq_length = min(options.max_seq_length, model.max_seq_length)
    return model, folder


def _refuse_pickles(folder: Path) -> None:
    """The layers above the transformer lie in folders of their own, and may be pickles where it is not."""
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
    """Batches for `run`; `tokens` tells how many an item has. `padded`: each costs as much as the longest of its
    batch."""
    backend = context.device.accelerator
    concurrency = BatchConcurrency(context)
    return Batcher(
        run,
        tokens,
        max_batch_cost=options.batch_tokens or BATCH_TOKENS[backend],
        batch_overhead=BATCH_OVERHEAD[backend],
        watchdog=context.watchdog,
        concurrency=concurrency.count,
        before_batch=concurrency.enter,
        padded=padded,
    )
