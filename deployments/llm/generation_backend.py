"""From a request to the events of a generated text, for every worker type on `GenerationEngine`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

from deployments.llm.generation_request import GenerationRequest
from deployments.vllm_runtime.generation_engine import (
    SAMPLING_OPTIONS,
    EngineInput,
    Finish,
    GenerationEngine,
    GenerationParams,
)
from rbee_serve.errors import InvalidRequest, RequestTooLong
from rbee_serve.events import Event, Output, StopReason
from rbee_serve.outputs import OutputValue, TokenOutput
from rbee_serve.state import MemorySource
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.memory import MemoryGauge
from rbee_serve.worker.narration import narrate
from rbee_serve.worker.request_clock import RequestClock

RequestT = TypeVar("RequestT", bound=GenerationRequest)
OutputT = TypeVar("OutputT", bound=OutputValue)

_STOP_REASONS = {"stop": StopReason.EOS, "length": StopReason.MAX_TOKENS, "abort": StopReason.CANCELLED}


class GenerationBackend(InferenceBackend[RequestT, OutputT]):
    """An engine. A worker type adds how a request becomes the engine's input."""

    actor: str
    """The actor of the narration."""

    def __init__(self, engine: GenerationEngine, memory: MemoryGauge) -> None:
        self._engine = engine
        self._memory = memory

    @abstractmethod
    async def _engine_input(self, request: RequestT) -> tuple[EngineInput, str, Sequence[str]]:
        """The engine's input, the request field that it comes from, and a sentence about each thing that was changed
        or left out. Raises `InvalidRequest`."""

    async def _generate(self, request: RequestT) -> AsyncGenerator[Event[TokenOutput], None]:
        """One `token` for each generated token, then `metrics` and `end`. `narration` before the prompt is read and
        after the last token.

        Raises `RequestTooLong`, `InvalidRequest`, or `WorkerLost` when the engine has died.
        """
        engine_input, field, changes = await self._engine_input(request)
        tokens_in = len(engine_input["prompt_token_ids"])
        self._check_length(field, tokens_in, request.max_tokens)
        params = self._params(request)
        yield narrate(request, self.actor, "prefill", f"Reading a prompt of {tokens_in} tokens")
        for sentence in changes:
            yield narrate(request, self.actor, "adjust", sentence)
        clock = RequestClock()
        count = 0
        finish = Finish(None)
        async with aclosing(self._engine.generate(engine_input, params)) as steps:
            async for step in steps:
                if isinstance(step, Finish):
                    finish = step
                    continue
                if not count:
                    clock.mark_output()
                for text in step:
                    yield Output(TokenOutput(t=text, i=count))
                    count += 1
        seconds = clock.seconds
        reason, matched = stop_reason(finish)
        yield narrate(request, self.actor, "complete", f"Generated {count} tokens in {seconds:.1f} s ({reason.value})")
        metrics = {
            "tokens_per_sec": round(count / seconds, 2),
            "time_to_first_token_ms": clock.first_output_ms,
            "tokens_in": tokens_in,
            "tokens_out": count,
        }
        for event in clock.complete(
            self, metrics, tokens_out=count, seconds=seconds, stop_reason=reason, stop_sequence_matched=matched,
            seed=request.seed,
        ):  # fmt: skip
            yield event

    def _check_length(self, field: str, prompt_tokens: int, max_tokens: int) -> None:
        if prompt_tokens == 0:
            raise InvalidRequest.of_field(field, "length >= 1", "the text has no tokens")
        limit = self._engine.context_tokens
        if prompt_tokens + max_tokens > limit:
            raise RequestTooLong.of_field(
                field,
                f"tokens <= {limit}",
                f"{prompt_tokens} tokens and max_tokens {max_tokens} exceed the model's context of {limit}; shorten the"
                " one or the other",
            )

    def _params(self, request: GenerationRequest) -> GenerationParams:
        if request.lora is not None and request.lora not in self._engine.loras:
            known = ", ".join(self._engine.loras) or "none"
            raise InvalidRequest.of_field("lora", f"one of: {known}", f"no such adapter; configured are: {known}")
        return GenerationParams(
            max_tokens=request.max_tokens,
            min_tokens=request.min_tokens,
            sampling={name: value for name in SAMPLING_OPTIONS if (value := getattr(request, name)) is not None},
            stop=request.stop,
            seed=request.seed,
            ignore_eos=request.ignore_eos,
            lora=request.lora,
        )

    def is_healthy(self) -> bool:
        """False once the engine's process is dead."""
        return self._engine.alive

    def why_unhealthy(self) -> str:
        """Why the engine's process is dead."""
        return self._engine.why_dead()

    def engine_requests(self) -> int:
        """Requests that run or wait in the engine's scheduler."""
        return self._engine.requests

    def memory_bytes(self) -> int:
        """Bytes that the engine's processes hold."""
        return self._memory()

    def memory_source(self) -> MemorySource | None:
        """How they were counted."""
        return self._memory.source

    def close(self) -> None:
        """End the engine's processes."""
        self._engine.close()


def stop_reason(finish: Finish) -> tuple[StopReason, str | None]:
    """The protocol's stop reason, and the stop sequence if one matched."""
    if finish.reason == "stop" and isinstance(finish.stop_match, str):
        return StopReason.STOP_SEQUENCE, finish.stop_match
    return _STOP_REASONS.get(finish.reason or "error", StopReason.ERROR), None
