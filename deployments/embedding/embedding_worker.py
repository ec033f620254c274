"""The embedding worker: texts in, vectors out, on sentence-transformers or vLLM."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from deployments.embedding import sentence_transformers_engine, vllm_embedding_engine
from deployments.embedding.embedding_engine import EmbeddingEngine, ModelCard, Tokens
from deployments.torch_runtime.vectors import shaped
from rbee_serve.config import WorkerConfig, parse_engine
from rbee_serve.errors import ConfigurationError, InvalidRequest, RequestTooLong, Violation
from rbee_serve.events import End, Event, Metrics, Output, StopReason
from rbee_serve.model_files.resolve import check_local
from rbee_serve.outputs import EmbeddingOutput
from rbee_serve.request import InferenceRequest
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.memory import MemoryGauge, memory_gauge
from rbee_serve.worker.narration import narrate
from rbee_serve.worker.spec import LoadContext, WorkerSpec

ENGINES: dict[str, ModuleType] = {"sentence-transformers": sentence_transformers_engine, "vllm": vllm_embedding_engine}
"""By the name that `engine.name` says; each has `Options`, `check` and `start`."""

Text = Annotated[str, Field(min_length=1, max_length=131_072)]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class EmbeddingRequest(InferenceRequest):
    """Texts, and how their vectors are wanted."""

    input: Annotated[list[Text], Field(min_length=1, max_length=256, repr=False), BeforeValidator(_listed)]
    """One text, or a list of texts."""
    input_type: Annotated[str, Field(pattern=r"^[^\x00-\x1f]{1,64}$")] | None = None
    """What the texts are, such as `query` or `document`, for models that want them to begin with different words."""
    dimensions: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """The length of the vectors, for models whose vectors may be shortened."""
    normalize: bool = True
    """True: vectors of length 1. False: vectors as the model gives them."""
    truncate: bool = False
    """True: of a text that is longer than the model takes, only the beginning counts. False: it is an error."""
    encoding: Literal["float", "base64"] = "float"
    """`float`: lists of numbers. `base64`: the same as float32, in little-endian order."""


class EmbeddingBackend(InferenceBackend[EmbeddingRequest, EmbeddingOutput]):
    """Reads texts into tokens, has an engine make vectors of them, and gives those the wanted form."""

    def __init__(self, engine: EmbeddingEngine, card: ModelCard, memory: MemoryGauge) -> None:
        self._engine = engine
        self._card = card
        self._memory = memory
        # One thread: a tokenizer of transformers cannot be used from two at a time.
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer")

    async def execute(self, request: EmbeddingRequest) -> AsyncGenerator[Event[EmbeddingOutput], None]:
        """A `narration`, an `embedding` for each text, in order, `metrics`, `end`. Raises `InvalidRequest` and
        `RequestTooLong`."""
        began = time.monotonic()
        dimensions = self._dimensions(request.dimensions)
        prompt = self._prompt(request.input_type)
        loop = asyncio.get_running_loop()
        texts = await loop.run_in_executor(self._reader, self._read, prompt, request.input, request.truncate)
        self._check_lengths(texts)
        tokens_in = sum(map(len, texts))
        yield narrate(
            request, "embedding-worker", "embed", f"Embedding {len(texts)} texts of {tokens_in} tokens in all"
        )
        async with aclosing(self._engine.embed(texts)) as vectors:
            i = 0
            async for vector in vectors:
                embedding = shaped(vector[:dimensions], request.normalize, request.encoding)
                yield Output(EmbeddingOutput(embedding=embedding, dim=dimensions, i=i))
                i += 1
        seconds = time.monotonic() - began
        speed = {"texts_per_sec": round(len(texts) / seconds, 2), "tokens_per_sec": round(tokens_in / seconds, 2)}
        yield Metrics({**speed, "tokens_in": tokens_in, "vram_bytes": self.memory_bytes()})
        yield End(tokens_out=len(texts), decode_time_ms=round(seconds * 1000), stop_reason=StopReason.COMPLETE)

    def _dimensions(self, wanted: int | None) -> int:
        full, card = self._engine.dimensions, self._card
        if wanted is None or wanted == full:
            return full
        if wanted > full or not (card.lengths or card.any_length):
            why = f"this model has no more than {full}" if wanted > full else "this model's vectors cannot be shortened"
            cause = f"{why}; leave it out"
            raise InvalidRequest.of_field("dimensions", f"<= {full}" if wanted > full else f"== {full}", cause)
        if card.lengths and wanted not in card.lengths:
            known = ", ".join(map(str, card.lengths))
            raise InvalidRequest.of_field("dimensions", f"one of: {known}", f"this model's may be {known} or {full}")
        return wanted

    def _prompt(self, input_type: str | None) -> str:
        if input_type is None:
            return self._card.default_prompt
        if input_type not in self._card.prompts:
            known = ", ".join(sorted(self._card.prompts))
            raise InvalidRequest.of_field("input_type", f"one of: {known}", f"this model knows {known}")
        return self._card.prompts[input_type]

    def _read(self, prompt: str, texts: Sequence[str], truncate: bool) -> list[Tokens]:
        tokens: list[Tokens] = self._engine.tokenizer(
            [prompt + text for text in texts],
            truncation=truncate,
            max_length=self._engine.max_tokens if truncate else None,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        return tokens

    def _check_lengths(self, texts: Sequence[Tokens]) -> None:
        most = self._engine.max_tokens
        faults = [
            Violation(
                f"input[{index}]",
                f"tokens <= {most}",
                f"has {len(tokens)} tokens, but the model takes {most}; shorten it, or set truncate"
                if tokens
                else "has no tokens",
            )
            for index, tokens in enumerate(texts)
            if not 0 < len(tokens) <= most
        ]
        if faults:
            raise RequestTooLong.because(faults)

    def is_healthy(self) -> bool:
        """Whether the engine is."""
        return self._engine.is_healthy()

    def memory_bytes(self) -> int:
        """Bytes that the engine holds."""
        return self._memory()

    def close(self) -> None:
        """Free the model."""
        self._reader.shutdown(wait=False, cancel_futures=True)
        self._engine.close()


def _options(worker: WorkerConfig) -> tuple[ModuleType, Any]:
    name = worker.engine.get("name", "sentence-transformers")
    if name not in ENGINES:
        raise ConfigurationError(f"engine.name: {name!r} is none of {', '.join(ENGINES)}")
    return ENGINES[name], parse_engine(ENGINES[name].Options, worker)


def load(context: LoadContext) -> EmbeddingBackend:
    """Start the engine that the configuration names."""
    module, options = _options(context.worker)
    engine, card = module.start(context, options)
    return EmbeddingBackend(engine, card, memory_gauge(context.device))


def check(worker: WorkerConfig) -> None:
    """Look at the model's files and the engine's options before anything starts."""
    check_local(worker)
    module, options = _options(worker)
    module.check(worker, options)


SPEC = WorkerSpec(
    name="embedding",
    request=EmbeddingRequest,
    outputs=(EmbeddingOutput,),
    load=load,
    warm_up=lambda: EmbeddingRequest(input=["Hello", "A second text, so that a batch is worked on"]),
    default_max_ongoing_requests=256,
    check=check,
)
