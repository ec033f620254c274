"""The embedding worker: text to vectors, with sentence-transformers or vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from deployments.embedding.embedding_engine import EmbeddingEngine, Tokens
from deployments.engine_choice import choose_engine, engine_memory_needs
from deployments.request_fields import Text
from deployments.torch_runtime.literal_text import ControlNames, canonical, truncation
from deployments.torch_runtime.vectors import shaped
from deployments.vllm_runtime.engine_memory import engine_bytes
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import InvalidRequest, RequestTooLong, Violation
from rbee_serve.events import Event, Output
from rbee_serve.model_files.resolve import check_local
from rbee_serve.outputs import EmbeddingOutput
from rbee_serve.request import InferenceRequest
from rbee_serve.state import MemorySource
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.memory import MemoryGauge, memory_gauge
from rbee_serve.worker.narration import narrate
from rbee_serve.worker.request_clock import RequestClock
from rbee_serve.worker.spec import LoadContext, WorkerSpec

ENGINES = {
    "sentence-transformers": "deployments.embedding.sentence_transformers_engine",
    "vllm": "deployments.embedding.vllm_embedding_engine",
}
"""Modules by `engine.name`; the first one is the default."""


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class EmbeddingRequest(InferenceRequest):
    """Texts, and the format of their vectors."""

    input: Annotated[list[Text], Field(min_length=1, max_length=256, repr=False), BeforeValidator(_as_list)]
    """One text, or a list of texts."""
    input_type: Annotated[str, Field(pattern=r"^[^\x00-\x1f]{1,64}$")] | None = None
    """The kind of the texts, such as `query` or `document`, for models with a prompt for each kind."""
    dimensions: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """The length of the vectors, for models whose vectors may be shortened."""
    normalize: bool = True
    """True: vectors of length 1. False: the model's own vectors."""
    truncate: bool = False
    """True: a text that exceeds the model's maximum is truncated, and a `narration` says which. False: it is an
    error."""
    encoding: Literal["float", "base64"] = "float"
    """`float`: lists of numbers. `base64`: the same as little-endian float32."""


class EmbeddingBackend(InferenceBackend[EmbeddingRequest, EmbeddingOutput]):
    """Tokenizes texts, has the engine embed them, and formats the vectors."""

    def __init__(self, engine: EmbeddingEngine, memory: MemoryGauge) -> None:
        self._engine = engine
        self._card = engine.card
        self._control_names = ControlNames(engine.tokenizer)
        self._memory = memory
        # One thread: a tokenizer of transformers is not thread-safe.
        self._tokenizer_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer")

    async def execute(self, request: EmbeddingRequest) -> AsyncGenerator[Event[EmbeddingOutput], None]:
        """A `narration`, an `embedding` for each text in order, `metrics`, `end`. Raises `InvalidRequest` and
        `RequestTooLong`."""
        clock = RequestClock()
        dimensions = self._dimensions(request.dimensions)
        prompt = self._prompt(request.input_type)
        texts, lengths = await asyncio.get_running_loop().run_in_executor(
            self._tokenizer_thread, self._tokenize, prompt, request.input, request.truncate
        )
        self._check_lengths([len(text) for text in texts])
        tokens_in = sum(map(len, texts))
        yield narrate(request, "embedding-worker", "embed", f"Embedding {len(texts)} texts with {tokens_in} tokens")
        if cut := truncation("input", lengths, self._engine.max_tokens):
            yield narrate(request, "embedding-worker", "truncate", cut)
        async with aclosing(self._engine.embed(texts)) as vectors:
            i = 0
            async for vector in vectors:
                embedding = shaped(vector[:dimensions], request.normalize, request.encoding)
                yield Output(EmbeddingOutput(embedding=embedding, dim=dimensions, i=i))
                i += 1
        seconds = clock.seconds
        metrics = {
            "texts_per_sec": round(len(texts) / seconds, 2),
            "tokens_per_sec": round(tokens_in / seconds, 2),
            "tokens_in": tokens_in,
        }
        for event in clock.complete(self, metrics, tokens_out=len(texts), seconds=seconds):
            yield event

    def _dimensions(self, requested: int | None) -> int:
        full, card = self._engine.dimensions, self._card
        if requested is None or requested == full:
            return full
        if requested > full:
            raise InvalidRequest.of_field(
                "dimensions", f"<= {full}", f"this model's vectors have {full} dimensions; leave it out"
            )
        if not (card.lengths or card.any_length):
            raise InvalidRequest.of_field(
                "dimensions", f"== {full}", "this model's vectors cannot be shortened; leave it out"
            )
        if card.lengths and requested not in card.lengths:
            known = ", ".join(map(str, card.lengths))
            raise InvalidRequest.of_field("dimensions", f"one of: {known}", f"this model supports {known} or {full}")
        return requested

    def _prompt(self, input_type: str | None) -> str:
        if input_type is None:
            return self._card.default_prompt
        if input_type not in self._card.prompts:
            known = ", ".join(sorted(self._card.prompts))
            raise InvalidRequest.of_field("input_type", f"one of: {known}", f"this model supports {known}")
        return self._card.prompts[input_type]

    def _tokenize(self, prompt: str, texts: Sequence[str], truncate: bool) -> tuple[list[Tokens], list[int]]:
        """The tokens of each text, and how many they are without truncation."""
        texts = [canonical(text) for text in texts]
        if named := self._control_names.found_in(prompt):  # the prompt's are control tokens, the texts' are not
            texts = [self._control_names.split(text) for text in texts]
        texts = [prompt + text for text in texts]
        tokens = self._encode(texts, split_special_tokens=not named)
        lengths, max_tokens = [len(text) for text in tokens], self._engine.max_tokens
        for index in (index for index, length in enumerate(lengths) if truncate and length > max_tokens):
            [tokens[index]] = self._encode(
                [texts[index]], split_special_tokens=not named, truncation=True, max_length=max_tokens
            )
        return tokens, lengths

    def _encode(self, texts: Sequence[str], **options: Any) -> list[Tokens]:
        tokens: list[Tokens] = self._engine.tokenizer(
            texts, padding=False, return_attention_mask=False, return_token_type_ids=False, verbose=False, **options
        )["input_ids"]
        return tokens

    def _check_lengths(self, lengths: Sequence[int]) -> None:
        max_tokens = self._engine.max_tokens
        violations = [
            Violation(
                f"input[{index}]",
                f"tokens <= {max_tokens}",
                f"has {length} tokens, but the model takes {max_tokens}; shorten it, or set truncate"
                if length
                else "has no tokens",
            )
            for index, length in enumerate(lengths)
            if not 0 < length <= max_tokens
        ]
        if violations:
            raise RequestTooLong.because(violations)

    def is_healthy(self) -> bool:
        """Whether the engine is healthy."""
        return self._engine.is_healthy()

    def why_unhealthy(self) -> str | None:
        """What the engine reports."""
        return self._engine.why_unhealthy()

    def memory_bytes(self) -> int:
        """Bytes of memory of the engine."""
        return self._memory()

    def memory_source(self) -> MemorySource | None:
        """How they were counted."""
        return self._memory.source

    def close(self) -> None:
        """Free the model."""
        self._tokenizer_thread.shutdown(wait=False, cancel_futures=True)
        self._engine.close()


def load(context: LoadContext) -> EmbeddingBackend:
    """Load the model into the configured engine."""
    module, options = choose_engine(ENGINES, context.worker)
    return EmbeddingBackend(module.load(context, options), memory_gauge(context.device, engine_bytes))


def check(worker: WorkerConfig) -> None:
    """Check the model's files and the engine's options before Ray starts."""
    check_local(worker)
    module, options = choose_engine(ENGINES, worker)
    module.check(worker, options)


SPEC = WorkerSpec(
    name="embedding",
    request=EmbeddingRequest,
    outputs=(EmbeddingOutput,),
    load=load,
    warm_up=lambda: EmbeddingRequest(input=["Hello", "A second text, to have a batch of two"]),
    long_request=lambda: EmbeddingRequest(input=["one two three four five " * 100] * 256, truncate=True),
    default_max_ongoing_requests=256,
    waits_for_gpu=True,
    check=check,
    memory=partial(engine_memory_needs, ENGINES),
)
