"""Embeddings with vLLM's pooling runner, for GPUs: vLLM batches the texts, in processes of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from pydantic import ConfigDict

from deployments.embedding.embedding_engine import EmbeddingOptions, ModelCard, Tokens
from deployments.torch_runtime.vectors import Vector
from deployments.vllm_runtime.engine_options import check_engine, engine_options
from deployments.vllm_runtime.parallel_sizes import check_parallel_sizes
from deployments.vllm_runtime.planned_needs import vllm_memory_needs
from deployments.vllm_runtime.running_engine import RunningEngine
from deployments.vllm_runtime.vllm_engine import EngineStatistics, start_engine
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.memory_plan.model_facts import ModelFacts
from rbee_serve.memory_plan.needs import NOTHING, MemoryNeeds
from rbee_serve.model_files.gguf_conversion import FloatType
from rbee_serve.model_files.resolve import prepare
from rbee_serve.request import new_id
from rbee_serve.worker.registry import extras_for, import_engine
from rbee_serve.worker.spec import Device, LoadContext
from rbee_serve.worker.watchdog import Watchdog

SEQUENCES = 256
"""vLLM's default of `max_num_seqs` on most GPUs."""

ENCODERS = frozenset({"bert", "distilbert", "modernbert", "mpnet", "new", "nomic_bert", "roberta", "xlm-roberta"})
"""Model types whose attention looks both ways."""


class Options(EmbeddingOptions):
    """Options of `engine: {name: vllm}`: those of every embedding engine, and vLLM's options by vLLM's names."""

    model_config = ConfigDict(extra="allow")


def check(worker: WorkerConfig, options: Options) -> None:
    """Raise `ConfigurationError` for what vLLM does not support, and for options that are refused."""
    if worker.backend == "metal":
        raise ConfigurationError("backend: vllm cannot run on metal; use engine.name sentence-transformers")
    check_engine(worker.model_copy(update={"engine": options.model_extra or {}}))
    check_parallel_sizes(worker)


def memory_needs(worker: WorkerConfig, options: Options, facts: ModelFacts, gpu_bytes: int) -> MemoryNeeds:
    """See `WorkerSpec.memory`. An encoder such as BERT has no KV cache."""
    needs = vllm_memory_needs(options.model_extra or {}, worker.gpus, SEQUENCES, facts, gpu_bytes)
    if str(facts.config().get("model_type")) in ENCODERS:
        return replace(needs, kv_cache=NOTHING, kv_bytes_per_token=0)
    return needs


def load(context: LoadContext, options: Options) -> VllmEmbeddingEngine:
    """Start vLLM's processes with the model. Raises what `start_engine` raises."""
    assert context.worker.model_ref is not None
    import_engine("vllm", extras_for(context.device.accelerator, "cpu"))
    given = options.model_extra or {}
    folder = prepare(context.worker.model_ref, context.report, dtype=_gguf_dtype(context.device, given.get("dtype")))
    worker = context.worker.model_copy(update={"engine": given})
    context = replace(context, worker=worker)
    statistics = EngineStatistics(context.watchdog)
    engine = start_engine(context, {"runner": "pooling", **engine_options(context, folder)}, statistics)
    return VllmEmbeddingEngine(engine, ModelCard(folder, options), context.watchdog)


def _gguf_dtype(device: Device, dtype: object) -> FloatType:
    """The type of a dequantised GGUF: float16 where vLLM would make that of a float32 model, on a GPU."""
    return "float16" if device.accelerator == "cuda" and dtype in (None, "auto", "float16", "half") else "float32"


class VllmEmbeddingEngine:
    """An `AsyncLLM` with one vLLM request per text."""

    def __init__(self, engine: RunningEngine, card: ModelCard, watchdog: Watchdog) -> None:
        from vllm.inputs.engine import tokens_input
        from vllm.pooling_params import PoolingParams
        from vllm.v1.engine.exceptions import EngineDeadError

        self._engine, self._llm = engine, engine.llm
        self._watchdog = watchdog
        self._tokens_input, self._pooling_params, self._engine_dead = tokens_input, PoolingParams, EngineDeadError
        self.card = card
        self.tokenizer = self._llm.get_tokenizer()
        self.max_tokens = int(self._llm.model_config.max_model_len)
        self.dimensions = int(self._llm.model_config.embedding_size)

    async def embed(self, texts: Sequence[Tokens]) -> AsyncGenerator[Vector, None]:
        """The vector of each text, in order, not normalized. Raises `RunningEngine.error` when vLLM's process dies."""
        tasks = [asyncio.create_task(self._vector(text)) for text in texts]
        try:
            for task in tasks:
                with self._watchdog.working():
                    vector = await task
                yield vector
        except self._engine_dead as exc:
            raise self._engine.error() from exc
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _vector(self, text: Tokens) -> Vector:
        params = self._pooling_params(task="embed", use_activation=False)
        outputs = self._llm.encode(self._tokens_input(list(text)), params, new_id("embedding"))
        vector: Vector = None
        async with aclosing(outputs):
            async for output in outputs:
                vector = output.outputs.data.float().cpu().numpy()
        return vector

    def is_healthy(self) -> bool:
        """False once vLLM's process is dead."""
        return self._engine.alive

    def why_unhealthy(self) -> str:
        """Why vLLM's process is dead."""
        return self._engine.why_dead()

    def close(self) -> None:
        """End vLLM's processes."""
        self._engine.close()
