"""The reranker: ranks documents by their relevance to a query, with a cross-encoder of sentence-transformers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Annotated

from pydantic import Field

from deployments.request_fields import Text
from deployments.torch_runtime import cross_encoder
from deployments.torch_runtime.cross_encoder import CrossEncoderEngine, Pair
from deployments.torch_runtime.literal_text import truncation
from deployments.torch_runtime.text_encoder_needs import text_encoder_needs
from rbee_serve.config import WorkerConfig, parse_engine
from rbee_serve.errors import RequestTooLong, Violation
from rbee_serve.events import Event, Output
from rbee_serve.memory_plan.model_facts import ModelFacts
from rbee_serve.memory_plan.needs import MemoryNeeds
from rbee_serve.model_files.resolve import check_local
from rbee_serve.outputs import RankOutput
from rbee_serve.request import InferenceRequest
from rbee_serve.state import MemorySource
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.memory import MemoryGauge, memory_gauge
from rbee_serve.worker.narration import narrate
from rbee_serve.worker.request_clock import RequestClock
from rbee_serve.worker.spec import LoadContext, WorkerSpec


class RerankRequest(InferenceRequest):
    """A query, and the documents to rank."""

    query: Annotated[Text, Field(repr=False)]
    """The query."""
    documents: Annotated[list[Text], Field(min_length=1, max_length=256, repr=False)]
    """The documents."""
    top_n: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Return only so many documents, the most relevant ones; all if left out."""
    return_documents: bool = False
    """Whether to return each document's text with its score."""
    truncate: bool = False
    """True: where a query and a document exceed the model's maximum, the longer one is truncated, and a `narration`
    says where. False: it is an error."""


class RerankBackend(InferenceBackend[RerankRequest, RankOutput]):
    """Counts tokens, has the engine score the documents, and ranks them."""

    def __init__(self, engine: CrossEncoderEngine, memory: MemoryGauge) -> None:
        self._engine = engine
        self._memory = memory
        self._tokenizer_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer")

    async def execute(self, request: RerankRequest) -> AsyncGenerator[Event[RankOutput], None]:
        """A `narration`, a `rank` for each document with the most relevant first, `metrics`, `end`. Raises
        `RequestTooLong`."""
        clock = RequestClock()
        query, documents = self._engine.literal(request.query), [*map(self._engine.literal, request.documents)]
        lengths = await asyncio.get_running_loop().run_in_executor(
            self._tokenizer_thread, self._engine.lengths, query, documents
        )
        if not request.truncate:
            self._check_lengths(lengths)
        tokens = [min(length, self._engine.max_tokens) for length in lengths]
        tokens_in = sum(tokens)
        pairs = [Pair(query, document, n) for document, n in zip(documents, tokens, strict=True)]
        yield narrate(request, "reranker", "compare", f"Comparing {len(pairs)} documents with {tokens_in} tokens")
        if cut := truncation("documents", lengths, self._engine.max_tokens):
            yield narrate(request, "reranker", "truncate", f"With the query: {cut[0].lower()}{cut[1:]}")
        async with aclosing(self._engine.scores(pairs)) as results:
            scores = [score async for score in results]
        best = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[: request.top_n]
        for i, index in enumerate(best):
            text = request.documents[index] if request.return_documents else None
            yield Output(RankOutput(index=index, relevance_score=round(scores[index], 7), document=text, i=i))
        seconds = clock.seconds
        metrics = {
            "texts_per_sec": round(len(pairs) / seconds, 2),
            "tokens_per_sec": round(tokens_in / seconds, 2),
            "tokens_in": tokens_in,
        }
        for event in clock.complete(self, metrics, tokens_out=len(best), seconds=seconds):
            yield event

    def _check_lengths(self, lengths: Sequence[int]) -> None:
        max_tokens = self._engine.max_tokens
        violations = [
            Violation(
                f"documents[{index}]",
                f"tokens <= {max_tokens}",
                f"has {length} tokens together with the query, but the model takes {max_tokens}; shorten one of "
                "them, or set truncate",
            )
            for index, length in enumerate(lengths)
            if length > max_tokens
        ]
        if violations:
            raise RequestTooLong.because(violations)

    def memory_bytes(self) -> int:
        """Bytes of memory of the model."""
        return self._memory()

    def memory_source(self) -> MemorySource | None:
        """How they were counted."""
        return self._memory.source

    def close(self) -> None:
        """Free the model."""
        self._tokenizer_thread.shutdown(wait=False, cancel_futures=True)
        self._engine.close()


def load(context: LoadContext) -> RerankBackend:
    """Load the model."""
    options = parse_engine(cross_encoder.Options, context.worker)
    return RerankBackend(cross_encoder.load(context, options), memory_gauge(context.device))


def check(worker: WorkerConfig) -> None:
    """Check the model's files and the engine's options before Ray starts."""
    check_local(worker)
    cross_encoder.check(worker, parse_engine(cross_encoder.Options, worker))


def memory_needs(worker: WorkerConfig, facts: ModelFacts, gpu_bytes: int) -> MemoryNeeds:
    """See `WorkerSpec.memory`."""
    return text_encoder_needs(parse_engine(cross_encoder.Options, worker), facts)


SPEC = WorkerSpec(
    name="reranker",
    request=RerankRequest,
    outputs=(RankOutput,),
    load=load,
    warm_up=lambda: RerankRequest(query="Hello", documents=["Hello", "A second text, to have a batch of two"]),
    long_request=lambda: RerankRequest(
        query="Which document counts?", documents=["one two three four five " * 1000] * 256, truncate=True
    ),
    default_max_ongoing_requests=256,
    modules=("sentence_transformers",),
    extra="embedding",
    waits_for_gpu=True,
    check=check,
    max_gpus=1,
    memory=memory_needs,
)
