"""Embeddings with vLLM's pooling runner, on the CPU and without Ray."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from deployments.embedding.embedding_worker import SPEC, EmbeddingRequest, load
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import InvalidRequest
from rbee_serve.events import Output, Started
from rbee_serve.replica.event_stream import ordered
from rbee_serve.result import collect
from rbee_serve.validation.parse import parse_object
from rbee_serve.worker.spec import Device, LoadContext
from tests.conftest import EMBEDDING_MODEL

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

TEXTS = ["A cat sleeps on the sofa.", "The kitten naps.", "Share prices fell sharply today. " * 20]


async def responses(engine: dict[str, Any], *requests: dict[str, Any]) -> list[Any]:
    """The embeddings of each request, all sent concurrently; then one request is cancelled midway."""
    worker = WorkerConfig(id="embedding-0", type="embedding", model_ref=EMBEDDING_MODEL, engine=engine)
    context = LoadContext(worker, Device("cpu"), lambda progress: None)
    backend = await asyncio.to_thread(load, context)

    async def embeddings(fields: dict[str, Any]) -> Any:
        request = parse_object(EmbeddingRequest, fields)
        result = await collect(ordered(Started.now("job", "model"), backend.execute(request)), SPEC.outputs)
        return result.output["embeddings"]

    try:
        found = await asyncio.gather(*map(embeddings, requests), return_exceptions=True)
        async with aclosing(backend.execute(parse_object(EmbeddingRequest, {"input": TEXTS * 20}))) as work:
            async for event in work:
                if isinstance(event, Output):
                    break
        found.append(await embeddings({"input": TEXTS}))
        async with asyncio.timeout(30):  # texts of the cancelled request that vLLM had started
            while context.watchdog.last_progress_age_s is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert backend.is_healthy()
        return found
    finally:
        backend.close()


def cosine(one: Any, other: Any) -> float:
    return float(dot(one, other) / (dot(one, one) * dot(other, other)) ** 0.5)


def dot(one: Any, other: Any) -> float:
    return float(sum(x * y for x, y in zip(one, other, strict=True)))


async def test_vllm_gives_the_vectors_and_errors_of_sentence_transformers() -> None:
    requests: list[dict[str, Any]] = [
        {"input": TEXTS},
        {"input": TEXTS[0], "normalize": False},
        {"input": TEXTS[0], "input_type": "query"},
        {"input": ["a", "word " * 300]},
    ]
    ours = await responses({"prompts": {"query": "query: "}}, *requests)
    theirs = await responses(
        {"name": "vllm", "dtype": "float32", "prompts": {"query": "query: "}, "max_num_seqs": 16}, *requests
    )
    for index in (0, 1, 2, 4):
        for one, other in zip(ours[index], theirs[index], strict=True):
            assert cosine(one, other) >= 0.99999
    for refused in (ours[3], theirs[3]):
        assert isinstance(refused, InvalidRequest)
        assert "input[1]: has 302 tokens, but the model takes 256" in refused.message
