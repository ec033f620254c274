"""The LLM worker: text generation on vLLM's `AsyncLLM`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from deployments.llm.chat_template import ChatTokenizer
from deployments.llm.generation_backend import GenerationBackend
from deployments.llm.generation_request import ChatMessage, GenerationRequest, Text
from deployments.vllm_runtime.cpu_defaults import dtype_default, step_size_default
from deployments.vllm_runtime.engine_memory import engine_bytes
from deployments.vllm_runtime.engine_options import check_engine, sequences_default, vllm_options
from deployments.vllm_runtime.generation_engine import (
    EngineInput,
    GenerationEngine,
    check_option_names,
    load_engine,
)
from deployments.vllm_runtime.parallel_sizes import check_parallel_sizes
from deployments.vllm_runtime.planned_needs import vllm_memory_needs
from rbee_serve.config import WorkerConfig
from rbee_serve.events import Event
from rbee_serve.memory_plan.model_facts import ModelFacts
from rbee_serve.memory_plan.needs import MemoryNeeds
from rbee_serve.model_files.gguf_conversion import ELEMENT_BYTES
from rbee_serve.model_files.resolve import check_local, prepare
from rbee_serve.outputs import TokenOutput
from rbee_serve.worker.memory import MemoryGauge, memory_gauge
from rbee_serve.worker.spec import LoadContext, WorkerSpec

MAX_ONGOING_REQUESTS = 256
"""Requests that run at once unless the configuration has another number."""

MAX_INLINE_CHARACTERS = 2000
"""Longer texts are tokenised in a thread; shorter ones take under a millisecond."""


class LlmRequest(GenerationRequest):
    """A prompt or a chat, and how to continue it."""

    prompt: Annotated[str | None, Field(min_length=1, max_length=32768, repr=False)] = None
    """The text to continue, as it is."""
    messages: Annotated[list[ChatMessage[Text]] | None, Field(min_length=1, max_length=1024, repr=False)] = None
    """The chat to answer, formatted by the model's own template. Exactly one of `prompt` and `messages` is given."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of prompt and messages")
        return self


class LlmBackend(GenerationBackend[LlmRequest, TokenOutput]):
    """An engine for prompts that are texts."""

    actor = "llm-worker"

    def __init__(self, engine: GenerationEngine, memory: MemoryGauge) -> None:
        super().__init__(engine, memory)
        self._chat = ChatTokenizer(engine.tokenizer)

    def execute(self, request: LlmRequest) -> AsyncGenerator[Event[TokenOutput], None]:
        """One `token` for each generated token, `metrics`, `end`; `narration` before the prompt is read and after
        the last token. Raises `RequestTooLong`, `InvalidRequest`, or `WorkerLost` when the engine has died."""
        return self._generate(request)

    async def _engine_input(self, request: LlmRequest) -> tuple[EngineInput, str, tuple[str, ...]]:
        length = len(request.prompt or "") + sum(len(message.content) for message in request.messages or ())
        if length > MAX_INLINE_CHARACTERS:
            tokens = await asyncio.to_thread(self._encode, request)
        else:
            tokens = self._encode(request)
        return self._engine.input_of_tokens(tokens), "prompt", ()

    def _encode(self, request: LlmRequest) -> list[int]:
        if request.prompt is not None:
            return list(self._engine.tokenizer.encode(request.prompt))
        return self._chat.tokens([message.model_dump() for message in request.messages or ()])


def defaults(context: LoadContext) -> dict[str, Any]:
    """vLLM's options for this worker type, which the configuration may replace."""
    return {
        **dtype_default(context),
        **step_size_default(context),
        **sequences_default(context, SPEC.default_max_ongoing_requests),
        # Otherwise a model that also reads images has memory reserved for the largest ones.
        "language_model_only": True,
    }


def load(context: LoadContext) -> LlmBackend:
    """Fetch, check and convert the model's files, then start the engine on them."""
    assert context.worker.model_ref is not None
    check_option_names(context)
    options = defaults(context)
    dtype = vllm_options(context.worker).dtype or options.get("dtype", "bfloat16")
    model = prepare(context.worker.model_ref, context.report, dtype=dtype if dtype in ELEMENT_BYTES else "bfloat16")
    return LlmBackend(load_engine(context, model, **options), memory_gauge(context.device, engine_bytes))


def check(worker: WorkerConfig) -> None:
    """Check the model's files and the engine's options before anything starts."""
    check_local(worker)
    check_engine(worker)
    check_parallel_sizes(worker)


def memory_needs(worker: WorkerConfig, facts: ModelFacts, gpu_bytes: int) -> MemoryNeeds:
    """See `WorkerSpec.memory`."""
    sequences = worker.max_ongoing_requests or MAX_ONGOING_REQUESTS
    return vllm_memory_needs(worker.engine, worker.gpus, sequences, facts, gpu_bytes)


SPEC = WorkerSpec(
    name="llm",
    request=LlmRequest,
    outputs=(TokenOutput,),
    load=load,
    warm_up=lambda: LlmRequest(prompt="Hello", max_tokens=2, temperature=0.0),
    long_request=lambda: LlmRequest(prompt="Count from one:", max_tokens=1024, ignore_eos=True, temperature=0.0),
    accelerators=frozenset({"cuda", "cpu"}),
    default_max_ongoing_requests=MAX_ONGOING_REQUESTS,
    modules=("vllm",),
    extra="cpu",
    waits_for_gpu=True,
    check=check,
    memory=memory_needs,
)
