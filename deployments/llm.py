"""The LLM worker: text generation on vLLM's `AsyncLLM`."""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deployments.vllm_engine import EngineStatistics, check_engine, engine_options, start_engine
from deployments.vllm_terms import fold_seed, split_text, stop_reason
from rbee_serve import correlation
from rbee_serve.backend import InferenceBackend
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError, InvalidRequest, RequestTooLong, WorkerLost
from rbee_serve.events import End, Event, Metrics, Narration, Output
from rbee_serve.outputs import TokenOutput
from rbee_serve.replica.gguf_conversion import ELEMENT_BYTES
from rbee_serve.replica.memory import MemoryGauge, memory_gauge
from rbee_serve.replica.model_files import check_local, prepare
from rbee_serve.request import InferenceRequest, new_id
from rbee_serve.step_clock import StepClock
from rbee_serve.worker import LoadContext, WorkerSpec

LONG_TEXT = 2000
"""Texts of more characters are tokenised in a thread; shorter ones take under a millisecond."""


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    role: Literal["system", "user", "assistant", "tool"]
    """Who speaks."""
    content: Annotated[str, Field(max_length=32768, repr=False)]
    """What is said."""


class LlmRequest(InferenceRequest):
    """A prompt or a chat, and how to go on from it. Bounds are those of rbee's Rust worker; a sampling field that is
    left out takes the model's own default (`generation_config.json`), then vLLM's."""

    prompt: Annotated[str | None, Field(min_length=1, max_length=32768, repr=False)] = None
    """The text to continue, as it is."""
    messages: Annotated[list[Message] | None, Field(min_length=1, max_length=1024, repr=False)] = None
    """The chat to answer, put into the model's own template. Exactly one of `prompt` and `messages` is given."""
    max_tokens: Annotated[int, Field(ge=1, le=2048)] = 256
    """The largest number of tokens to generate."""
    min_tokens: Annotated[int, Field(ge=0, le=2048)] = 0
    """Tokens before which no end and no stop sequence counts."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0 takes the likeliest token each time."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Only the likeliest tokens that together reach this probability."""
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Only this many of the likeliest tokens; 0 for all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Only tokens at least this likely, relative to the likeliest."""
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    """Over 1: tokens that have come are made less likely."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Over 0: tokens that have been generated are made less likely, once."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Over 0: tokens that have been generated are made less likely, each time."""
    stop: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(default_factory=list, max_length=4)
    """Texts that end the generation. They are not part of the output."""
    seed: Annotated[int, Field(ge=0, le=2**64 - 1)] | None = None
    """The same seed and request give the same tokens."""
    ignore_eos: bool = False
    """Whether the model's own end is ignored, as benchmarks want."""
    lora: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """The name of a configured LoRA adapter (`engine.lora_modules`)."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of prompt and messages")
        if self.min_tokens > self.max_tokens:
            raise ValueError("min_tokens must not be larger than max_tokens")
        return self


SAMPLING_FIELDS = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip
"""Fields that go to vLLM by their own names where they are given."""


class LlmBackend(InferenceBackend[LlmRequest, TokenOutput]):
    """A vLLM engine and the model's tokenizer. `loras` are adapters by name."""

    def __init__(
        self,
        engine: Any,
        steps: StepClock,
        statistics: EngineStatistics,
        memory: MemoryGauge,
        loras: dict[str, Any],
    ) -> None:
        self._engine = engine
        self._steps = steps
        self._statistics = statistics
        self._memory = memory
        self._loras = loras
        self._tokenizer = engine.get_tokenizer()
        self._vocabulary = len(self._tokenizer)
        self._context_tokens = int(engine.model_config.max_model_len)
        self._defaults = {
            name: value for name, value in engine.model_config.get_diff_sampling_param().items()
            if name in SAMPLING_FIELDS
        }  # fmt: skip
        sampling = importlib.import_module("vllm.sampling_params")
        self._sampling_params = sampling.SamplingParams
        self._delta = sampling.RequestOutputKind.DELTA
        self._tokens_input = importlib.import_module("vllm.inputs.engine").tokens_input
        self._engine_dead = importlib.import_module("vllm.v1.engine.exceptions").EngineDeadError

    async def execute(self, request: LlmRequest) -> AsyncGenerator[Event[TokenOutput], None]:
        """One `token` for each generated token, `metrics`, `end`; `narration` before the prompt is read and after
        the last token. Raises `RequestTooLong`, `InvalidRequest`, or `WorkerLost` when the engine has died."""
        prompt = await self._tokens(request)
        self._check_length(len(prompt), request.max_tokens)
        yield self._narrate(request, "prefill", f"Reading a prompt of {len(prompt)} tokens")
        began = time.monotonic()
        first_at: float | None = None
        count = 0
        last: Any = None
        outputs = self._engine.generate(
            self._tokens_input(prompt),
            self._parameters(request),
            new_id("generation"),
            lora_request=self._lora(request.lora),
        )
        try:
            async with aclosing(outputs), aclosing(self._steps.awaited(outputs)) as steps:
                async for output in steps:
                    last = output.outputs[0]
                    first_at = first_at or time.monotonic()
                    for piece in self._pieces(last.text, last.token_ids):
                        yield Output(TokenOutput(t=piece, i=count))
                        count += 1
        except self._engine_dead as exc:
            raise WorkerLost("the inference engine died with the request on it; it is being replaced") from exc
        seconds = time.monotonic() - began
        reason, matched = stop_reason(last.finish_reason, last.stop_reason)
        yield self._narrate(request, "complete", f"Generated {count} tokens in {seconds:.1f} s ({reason.value})")
        yield Metrics(self._metrics(len(prompt), count, seconds, (first_at or began) - began))
        yield End(
            tokens_out=count,
            decode_time_ms=round(seconds * 1000),
            stop_reason=reason,
            stop_sequence_matched=matched,
            seed=request.seed,
        )

    async def _tokens(self, request: LlmRequest) -> list[int]:
        length = len(request.prompt or "") + sum(len(message.content) for message in request.messages or ())
        if length > LONG_TEXT:
            return await asyncio.to_thread(self._encode, request)
        return self._encode(request)

    def _encode(self, request: LlmRequest) -> list[int]:
        if request.prompt is not None:
            return list(self._tokenizer.encode(request.prompt))
        if self._tokenizer.chat_template is None:
            raise InvalidRequest.of_field("messages", "chat template", "this model has none; use prompt instead")
        messages = [message.model_dump() for message in request.messages or ()]
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as exc:  # a template refuses a chat, such as two user turns in a row, by raising anything
            raise InvalidRequest.of_field(
                "messages", "chat template", "the model's template refuses this chat"
            ) from exc
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _check_length(self, prompt_tokens: int, max_tokens: int) -> None:
        if prompt_tokens == 0:
            raise InvalidRequest.of_field("prompt", "length >= 1", "the text has no tokens")
        if prompt_tokens + max_tokens > self._context_tokens:
            raise RequestTooLong.of_field(
                "prompt",
                f"tokens <= {self._context_tokens}",
                f"{prompt_tokens} tokens and max_tokens {max_tokens} exceed the model's context of "
                f"{self._context_tokens}; shorten the one or the other",
            )

    def _parameters(self, request: LlmRequest) -> Any:
        given = {name: value for name in SAMPLING_FIELDS if (value := getattr(request, name)) is not None}
        return self._sampling_params(
            **(self._defaults | given),
            max_tokens=request.max_tokens,
            min_tokens=request.min_tokens,
            stop=request.stop or None,
            seed=None if request.seed is None else fold_seed(request.seed),
            ignore_eos=request.ignore_eos,
            output_kind=self._delta,
        )

    def _lora(self, name: str | None) -> Any:
        if name is None:
            return None
        if name not in self._loras:
            known = ", ".join(sorted(self._loras)) or "none"
            raise InvalidRequest.of_field("lora", f"one of: {known}", f"no such adapter; configured are: {known}")
        return self._loras[name]

    def _pieces(self, text: str, token_ids: Sequence[int]) -> list[str]:
        if len(token_ids) == 1:
            return [text]
        lengths = [len(self._tokenizer.decode([token])) if token < self._vocabulary else 0 for token in token_ids]
        return split_text(text, lengths) if lengths else []

    def _metrics(self, tokens_in: int, tokens_out: int, seconds: float, first_token_s: float) -> dict[str, float]:
        return {
            "tokens_per_sec": round(tokens_out / seconds, 2) if seconds > 0 else 0.0,
            "vram_bytes": self.memory_bytes(),
            "time_to_first_token_ms": round(first_token_s * 1000, 1),
            "tokens_in": tokens_in,
            "tokens_out": tokens_out,
        }

    def _narrate(self, request: LlmRequest, action: str, human: str) -> Narration:
        return Narration(
            actor="llm-worker",
            action=action,
            target=request.job_id or "request",
            human=human,
            correlation_id=correlation.current(),
            job_id=request.job_id,
        )

    def is_healthy(self) -> bool:
        """False once the engine's process is dead."""
        return not self._engine.errored

    def engine_requests(self) -> int:
        """What the scheduler counts."""
        return self._statistics.requests

    def memory_bytes(self) -> int:
        """Bytes that the engine's processes hold."""
        return self._memory()

    def close(self) -> None:
        """End the engine's processes."""
        self._engine.shutdown()


def load(context: LoadContext) -> LlmBackend:
    """Fetch, check and convert the model's files, then start the engine on them."""
    assert context.worker.model_ref is not None
    wanted = context.worker.engine.get("dtype", "bfloat16")
    model = prepare(context.worker.model_ref, context.report, dtype=wanted if wanted in ELEMENT_BYTES else "bfloat16")
    options = engine_options(context, model)
    adapters = options.pop("lora_modules", {})
    if adapters and not isinstance(adapters, dict):
        raise ConfigurationError(f"worker {context.worker.id}: engine.lora_modules is a table of name: path")
    if adapters:
        options.setdefault("enable_lora", True)
    statistics = EngineStatistics(context.steps)
    engine = start_engine(context, options, statistics)
    request = importlib.import_module("vllm.lora.request").LoRARequest
    loras = {name: request(name, number, str(path)) for number, (name, path) in enumerate(adapters.items(), start=1)}
    return LlmBackend(engine, context.steps, statistics, memory_gauge(context.device), loras)


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
    backends=frozenset({"cuda", "cpu"}),
    default_capacity=256,
    modules=("vllm",),
    extra="cpu",
    check=check,
)
