"""The reranker: a query and documents in, the documents by how well they answer it out, on sentence-transformers."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from deployments.torch_runtime.sentence_transformers import ModelOptions, batcher, check_gpus, load_model
from rbee_serve.config import WorkerConfig, parse_engine
from rbee_serve.errors import ConfigurationError, RequestTooLong, Violation
from rbee_serve.events import End, Event, Metrics, Output, StopReason
from rbee_serve.model_files.resolve import check_local
from rbee_serve.outputs import RankOutput
from rbee_serve.request import InferenceRequest
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.memory import MemoryGauge, memory_gauge
from rbee_serve.worker.narration import narrate
from rbee_serve.worker.spec import LoadContext, WorkerSpec

Text = Annotated[str, Field(min_length=1, max_length=131_072)]


class RerankRequest(InferenceRequest):
    """A query, and the documents among which the best answers to it are looked for."""

    query: Annotated[Text, Field(repr=False)]
    """What the documents are compared with."""
    documents: Annotated[list[Text], Field(min_length=1, max_length=256, repr=False)]
    """The documents."""
    top_n: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """How many of the documents to answer with, the best ones; all, if left out."""
    return_documents: bool = False
    """Whether each document's text comes back with its score."""
    truncate: bool = False
    """True: of a query and a document that are longer than the model takes, the end of the longer one does not count.
    False: they are an error."""


class Pair(NamedTuple):
    """What the model looks at: the query and one document, and how many tokens they are together."""

    query: str
    document: str
    tokens: int


class RerankBackend(InferenceBackend[RerankRequest, RankOutput]):
    """A `CrossEncoder`, which reads the query and a document together, and the batches that it works on."""

    def __init__(self, model: Any, context: LoadContext, options: ModelOptions, memory: MemoryGauge) -> None:
        self._model = model
        self._memory = memory
        self._batcher = batcher(self._scores, lambda pair: pair.tokens, context, options)
        # The model's own tokenizer is busy in the model's thread, and cannot be used from two at a time.
        self._tokenizer = copy.deepcopy(model.tokenizer)
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer")
        self.max_tokens = int(model.max_seq_length)
        self._template_tokens = model.preprocess([("a", "a")])["input_ids"].shape[1] - self._lengths("a", ["a"])[0]

    async def execute(self, request: RerankRequest) -> AsyncGenerator[Event[RankOutput], None]:
        """A `narration`, a `rank` for each document, the best first, `metrics`, `end`. Raises `RequestTooLong`."""
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        lengths = await loop.run_in_executor(self._reader, self._lengths, request.query, request.documents)
        lengths = [length + self._template_tokens for length in lengths]
        if not request.truncate:
            self._check(lengths)
        read = [min(length, self.max_tokens) for length in lengths]
        pairs = [Pair(request.query, document, n) for document, n in zip(request.documents, read, strict=True)]
        yield narrate(request, "reranker", "compare", f"Comparing {len(pairs)} documents, {sum(read)} tokens in all")
        async with aclosing(self._batcher.results(pairs)) as results:
            scores = [score async for score in results]
        best = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[: request.top_n]
        for i, index in enumerate(best):
            text = request.documents[index] if request.return_documents else None
            yield Output(RankOutput(index=index, relevance_score=round(scores[index], 7), document=text, i=i))
        seconds = time.monotonic() - began
        speed = {"texts_per_sec": round(len(pairs) / seconds, 2), "tokens_per_sec": round(sum(read) / seconds, 2)}
        yield Metrics({**speed, "tokens_in": sum(read), "vram_bytes": self.memory_bytes()})
        yield End(tokens_out=len(best), decode_time_ms=round(seconds * 1000), stop_reason=StopReason.COMPLETE)

    def _lengths(self, query: str, documents: Sequence[str]) -> list[int]:
        read = self._tokenizer([query] * len(documents), documents, padding=False, truncation=False, verbose=False)
        return [len(tokens) for tokens in read["input_ids"]]

    def _check(self, lengths: Sequence[int]) -> None:
        faults = [
            Violation(
                f"documents[{index}]",
                f"tokens <= {self.max_tokens}",
                f"has {length} tokens together with the query, but the model takes {self.max_tokens}; shorten one of "
                "them, or set truncate",
            )
            for index, length in enumerate(lengths)
            if length > self.max_tokens
        ]
        if faults:
            raise RequestTooLong.because(faults)

    def _scores(self, pairs: Sequence[Pair]) -> list[float]:
        texts = [(pair.query, pair.document) for pair in pairs]
        scores = self._model.predict(texts, batch_size=len(texts), show_progress_bar=False)
        return [float(score) for score in scores]

    def memory_bytes(self) -> int:
        """Bytes that the model holds."""
        return self._memory()

    def close(self) -> None:
        """Free the model."""
        self._reader.shutdown(wait=False, cancel_futures=True)
        self._batcher.close()


def load(context: LoadContext) -> RerankBackend:
    """Load the model. Raises `ConfigurationError` for one that does not compare two texts."""
    options = parse_engine(ModelOptions, context.worker)
    model, _ = load_model("CrossEncoder", context, options)
    if model.num_labels != 1:
        raise ConfigurationError(
            f"worker {context.worker.id}: a reranker's model gives one score, this one gives {model.num_labels}; "
            "choose a cross-encoder for reranking"
        )
    return RerankBackend(model, context, options, memory_gauge(context.device))


def check(worker: WorkerConfig) -> None:
    """Look at the model's files and the engine's options before anything starts."""
    check_local(worker)
    parse_engine(ModelOptions, worker)
    check_gpus(worker)


SPEC = WorkerSpec(
    name="reranker",
    request=RerankRequest,
    outputs=(RankOutput,),
    load=load,
    warm_up=lambda: RerankRequest(query="Hello", documents=["Hello", "A second text, so that a batch is worked on"]),
    default_max_ongoing_requests=256,
    modules=("sentence_transformers",),
    extra="embedding",
    check=check,
)
