"""The LLM worker: text generation on vLLM's `AsyncLLM`."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncGenerator
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deployments.llm.chat_template import ChatTokenizer, Role
from deployments.llm.text_generation import GenerationBackend, GenerationEngine, GenerationRequest, load_engine
from deployments.vllm_runtime.cpu_defaults import number_type, step_size
from deployments.vllm_runtime.vllm_engine import check_engine, engine_choices
from rbee_serve.config import WorkerConfig
from rbee_serve.events import Event
from rbee_serve.model_files.gguf_conversion import ELEMENT_BYTES
from rbee_serve.model_files.resolve import check_local, prepare
from rbee_serve.outputs import TokenOutput
from rbee_serve.worker.spec import LoadContext, WorkerSpec

LONG_TEXT = 2000
"""Texts of more characters are tokenised in a thread; shorter ones take under a millisecond."""


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    role: Role
    """Who speaks."""
    content: Annotated[str, Field(max_length=32768, repr=False)]
    """What is said."""


class LlmRequest(GenerationRequest):
    """A prompt or a chat, and how to go on from it."""

    prompt: Annotated[str | None, Field(min_length=1, max_length=32768, repr=False)] = None
    """The text to continue, as it is."""
    messages: Annotated[list[Message] | None, Field(min_length=1, max_length=1024, repr=False)] = None
    """The chat to answer, put into the model's own template. Exactly one of `prompt` and `messages` is given."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of prompt and messages")
        return self


class LlmBackend(GenerationBackend[LlmRequest, TokenOutput]):
    """An engine that reads texts."""

    def __init__(self, engine: GenerationEngine) -> None:
        super().__init__(engine)
        self._chat = ChatTokenizer(self._tokenizer)
        self._tokens_input = importlib.import_module("vllm.inputs.engine").tokens_input

    async def execute(self, request: LlmRequest) -> AsyncGenerator[Event[TokenOutput], None]:
        """One `token` for each generated token, `metrics`, `end`; `narration` before the prompt is read and after
        the last token. Raises `RequestTooLong`, `InvalidRequest`, or `WorkerLost` when the engine has died."""
        tokens = self._tokens_input(await self._tokens(request))
        async for event in self._generate(request, tokens, "prompt", "llm-worker"):
            yield event

    async def _tokens(self, request: LlmRequest) -> list[int]:
        length = len(request.prompt or "") + sum(len(message.content) for message in request.messages or ())
        if length > LONG_TEXT:
            return await asyncio.to_thread(self._encode, request)
        return self._encode(request)

    def _encode(self, request: LlmRequest) -> list[int]:
        if request.prompt is not None:
            return list(self._tokenizer.encode(request.prompt))
        return self._chat.tokens([message.model_dump() for message in request.messages or ()])


def load(context: LoadContext) -> LlmBackend:
    """Fetch, check and convert the model's files, then start the engine on them."""
    assert context.worker.model_ref is not None
    defaults = number_type(context) | step_size(context)
    wanted = (defaults | engine_choices(context.worker)).get("dtype", "bfloat16")
    model = prepare(context.worker.model_ref, context.report, dtype=wanted if wanted in ELEMENT_BYTES else "bfloat16")
    return LlmBackend(load_engine(context, model, **defaults))


def check(worker: WorkerConfig) -> None:
    """Look at the model's files and the engine's options before anything starts."""
    check_local(worker)
    check_engine(worker)


SPEC = WorkerSpec(
    name="llm",
    request=LlmRequest,
    outputs=(TokenOutput,),
    load=load,
    warm_up=lambda: LlmRequest(prompt="Hello", max_tokens=2, temperature=0.0),
    accelerators=frozenset({"cuda", "cpu"}),
    default_max_ongoing_requests=256,
    modules=("vllm",),
    extra="cpu",
    check=check,
)
