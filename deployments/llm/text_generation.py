"""Text from a vLLM engine: the fields that steer it, and tokens as events. Shared by the worker types that write."""

from __future__ import annotations

import importlib
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import Field, model_validator

from deployments.vllm_runtime.mapping import fold_seed, split_text, stop_reason
from deployments.vllm_runtime.vllm_engine import EngineStatistics, engine_options, start_engine
from rbee_serve.errors import ConfigurationError, InvalidRequest, RequestTooLong, WorkerLost
from rbee_serve.events import End, Event, Metrics, Output
from rbee_serve.outputs import OutputValue, TokenOutput
from rbee_serve.request import InferenceRequest, new_id
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.memory import MemoryGauge, memory_gauge
from rbee_serve.worker.narration import narrate
from rbee_serve.worker.spec import LoadContext
from rbee_serve.worker.watchdog import Watchdog


class GenerationRequest(InferenceRequest):
    """How a text is to be written. Bounds are those of rbee's Rust worker; a sampling field that is left out takes the
    model's own default (`generation_config.json`), then vLLM's."""

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
    def _check_tokens(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError("min_tokens must not be larger than max_tokens")
        return self


SAMPLING_FIELDS = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip
"""Fields that go to vLLM by their own names where they are given."""

RequestT = TypeVar("RequestT", bound=GenerationRequest)
OutputT = TypeVar("OutputT", bound=OutputValue)


@dataclass(frozen=True, slots=True)
class GenerationEngine:
    """A running `AsyncLLM` and what belongs to it. `loras` are adapters by name."""

    llm: Any
    steps: Watchdog
    statistics: EngineStatistics
    memory: MemoryGauge
    loras: dict[str, Any]


def load_engine(context: LoadContext, model: Path, **defaults: Any) -> GenerationEngine:
    """Start the engine on a model's files. `defaults` are options of vLLM's that the configuration may replace. Raises
    what `start_engine` raises."""
    options = defaults | engine_options(context, model)
    adapters = options.pop("lora_modules", {})
    if adapters and not isinstance(adapters, dict):
        raise ConfigurationError(f"worker {context.worker.id}: engine.lora_modules is a table of name: path")
    if adapters:
        options.setdefault("enable_lora", True)
    statistics = EngineStatistics(context.watchdog)
    llm = start_engine(context, options, statistics)
    request = importlib.import_module("vllm.lora.request").LoRARequest
    loras = {name: request(name, number, str(path)) for number, (name, path) in enumerate(adapters.items(), start=1)}
    return GenerationEngine(llm, context.watchdog, statistics, memory_gauge(context.device), loras)


class GenerationBackend(InferenceBackend[RequestT, OutputT]):
    """A vLLM engine and the model's tokenizer. A worker type adds how a request becomes the engine's input."""

    def __init__(self, engine: GenerationEngine) -> None:
        self._engine = engine
        self._llm = engine.llm
        self._tokenizer = engine.llm.get_tokenizer()
        self._vocabulary = len(self._tokenizer)
        self._context_tokens = int(engine.llm.model_config.max_model_len)
        self._defaults = {
            name: value for name, value in engine.llm.model_config.get_diff_sampling_param().items()
            if name in SAMPLING_FIELDS
        }  # fmt: skip
        sampling = importlib.import_module("vllm.sampling_params")
        self._sampling_params = sampling.SamplingParams
        self._delta = sampling.RequestOutputKind.DELTA
        self._engine_dead = importlib.import_module("vllm.v1.engine.exceptions").EngineDeadError

    async def _generate(
        self, request: GenerationRequest, prompt: Any, field: str, actor: str
    ) -> AsyncGenerator[Event[TokenOutput], None]:
        """One `token` for each generated token of the answer to `prompt`, an input of the engine's that has come from
        `field`; then `metrics` and `end`. `narration` before the prompt is read and after the last token.

        Raises `RequestTooLong`, `InvalidRequest`, or `WorkerLost` when the engine has died.
        """
        tokens_in = len(prompt["prompt_token_ids"])
        self._check_length(field, tokens_in, request.max_tokens)
        lora = self._lora(request.lora)
        yield narrate(request, actor, "prefill", f"Reading a prompt of {tokens_in} tokens")
        began = time.monotonic()
        first_at: float | None = None
        count = 0
        last: Any = None
        outputs = self._llm.generate(prompt, self._parameters(request), new_id("generation"), lora_request=lora)
        try:
            async with aclosing(outputs), aclosing(self._engine.steps.watch(outputs)) as steps:
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
        yield narrate(request, actor, "complete", f"Generated {count} tokens in {seconds:.1f} s ({reason.value})")
        yield Metrics(self._metrics(tokens_in, count, seconds, (first_at or began) - began))
        yield End(
            tokens_out=count,
            decode_time_ms=round(seconds * 1000),
            stop_reason=reason,
            stop_sequence_matched=matched,
            seed=request.seed,
        )

    def _check_length(self, field: str, prompt_tokens: int, max_tokens: int) -> None:
        if prompt_tokens == 0:
            raise InvalidRequest.of_field(field, "length >= 1", "the text has no tokens")
        if prompt_tokens + max_tokens > self._context_tokens:
            raise RequestTooLong.of_field(
                field,
                f"tokens <= {self._context_tokens}",
                f"{prompt_tokens} tokens and max_tokens {max_tokens} exceed the model's context of "
                f"{self._context_tokens}; shorten the one or the other",
            )

    def _parameters(self, request: GenerationRequest) -> Any:
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
        if name not in self._engine.loras:
            known = ", ".join(sorted(self._engine.loras)) or "none"
            raise InvalidRequest.of_field("lora", f"one of: {known}", f"no such adapter; configured are: {known}")
        return self._engine.loras[name]

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

    def is_healthy(self) -> bool:
        """False once the engine's process is dead."""
        return not self._llm.errored

    def engine_requests(self) -> int:
        """What the scheduler counts."""
        return self._engine.statistics.requests

    def memory_bytes(self) -> int:
        """Bytes that the engine's processes hold."""
        return self._engine.memory()

    def close(self) -> None:
        """End the engine's processes."""
        self._llm.shutdown()
