"""Embeddings by vLLM's pooling runner, for GPUs: the engine batches for itself, in processes of its own."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from pydantic import ConfigDict

from deployments.embedding.embedding_engine import EmbeddingEngine, EmbeddingOptions, ModelCard, Tokens
from deployments.torch_runtime.vectors import Vector
from deployments.vllm_runtime.engine_options import check_engine, engine_options
from deployments.vllm_runtime.vllm_engine import EngineStatistics, start_engine
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError, WorkerLost
from rbee_serve.model_files.resolve import prepare
from rbee_serve.request import new_id
from rbee_serve.worker.registry import import_engine
from rbee_serve.worker.spec import LoadContext
from rbee_serve.worker.watchdog import Watchdog


class Options(EmbeddingOptions):
    """`engine:` of a worker on vLLM: beside what all engines understand, vLLM's options by vLLM's names."""

    model_config = ConfigDict(extra="allow")


def check(worker: WorkerConfig, options: Options) -> None:
    """Raise `ConfigurationError` for what this engine cannot do, or must not."""
    if worker.backend == "metal":
        raise ConfigurationError("backend: vllm cannot run on metal; take engine.name sentence-transformers")
    check_engine(worker)


def start(context: LoadContext, options: Options) -> tuple[EmbeddingEngine, ModelCard]:
    """Start the engine's processes on the model. Raises what `start_engine` does."""
    assert context.worker.model_ref is not None
    import_engine("vllm", "gpu" if context.device.accelerator == "cuda" else "cpu")
    folder = prepare(context.worker.model_ref, context.report)
    worker = context.worker.model_copy(update={"engine": options.model_extra or {}})
    context = replace(context, worker=worker)
    statistics = EngineStatistics(context.steps)
    engine = start_engine(context, {"runner": "pooling", **engine_options(context, folder)}, statistics)
    return VllmEmbeddingEngine(engine, context.steps), ModelCard(folder, options)


class VllmEmbeddingEngine:
    """An `AsyncLLM` whose requests are texts."""

    def __init__(self, engine: Any, steps: Watchdog) -> None:
        self._engine = engine
        self._steps = steps
        self._tokens_input = importlib.import_module("vllm.inputs.engine").tokens_input
        self._parameters = importlib.import_module("vllm.pooling_params").PoolingParams
        self._engine_dead = importlib.import_module("vllm.v1.engine.exceptions").EngineDeadError
        self.tokenizer = engine.get_tokenizer()
        self.max_tokens = int(engine.model_config.max_model_len)
        self.dimensions = int(engine.model_config.embedding_size)

    async def embed(self, texts: Sequence[Tokens]) -> AsyncGenerator[Vector, None]:
        """The vector of each text, in order, not normalised. Raises `WorkerLost` when the engine has died."""
        tasks = [asyncio.create_task(self._vector(text)) for text in texts]
        try:
            for task in tasks:
                with self._steps.working():
                    vector = await task
                yield vector
        except self._engine_dead as exc:
            raise WorkerLost("the inference engine died with the request on it; it is being replaced") from exc
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _vector(self, text: Tokens) -> Vector:
        parameters = self._parameters(task="embed", use_activation=False)
        outputs = self._engine.encode(self._tokens_input(list(text)), parameters, new_id("embedding"))
        vector: Vector = None
        async with aclosing(outputs):
            async for output in outputs:
                vector = output.outputs.data.float().cpu().numpy()
        return vector

    def is_healthy(self) -> bool:
        """False once the engine's process is dead."""
        return not self._engine.errored

    def close(self) -> None:
        """End the engine's processes."""
        self._engine.shutdown()
