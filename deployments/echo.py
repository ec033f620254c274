"""The echo worker: a worker type without a model, to copy for a new one.

It returns the words of its prompt, at the requested rate. A real worker type replaces the fields of the request, the
loop in `execute` and `load`; `rbee-serve new NAME` writes a smaller one, for models that block. The tests run on this
worker, so it also fails on request: everything about that is in `echo_failures.py` and in the lines marked `fail`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated

from pydantic import Field

from deployments.echo_failures import FailingRequest, fail
from rbee_serve.worker import (
    Event,
    InferenceBackend,
    InternalError,
    LoadContext,
    MemoryGauge,
    MemorySource,
    Output,
    Progress,
    RequestClock,
    StopReason,
    TokenOutput,
    Watchdog,
    WorkerSpec,
    narrate,
    process_tree_bytes,
)


class EchoRequest(FailingRequest):
    """The text to echo, and how to fail."""

    prompt: Annotated[str, Field(min_length=1, max_length=32768, repr=False)]
    """The text to echo, word by word."""
    repeat: Annotated[int, Field(ge=1, le=100_000)] = 1
    """How many times the text is echoed."""
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 1_000_000
    """The largest number of words to return."""
    tokens_per_sec: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """Words per second. As fast as possible if left out."""
    progress: bool = False
    """Whether each word is followed by a `progress` event."""


class EchoBackend(InferenceBackend[EchoRequest, TokenOutput]):
    """Echoes. `active` counts the open requests, so that tests see whether a cancelled one has stopped."""

    def __init__(self, watchdog: Watchdog) -> None:
        self.active = 0
        self._healthy = True
        self._watchdog = watchdog
        self._memory = MemoryGauge(lambda: (process_tree_bytes(), "ram"))

    async def execute(self, request: EchoRequest) -> AsyncGenerator[Event[TokenOutput], None]:
        """The words of the prompt as tokens; joined they are the prompt."""
        clock = RequestClock()
        self.active += 1
        try:
            words = re.findall(r"\s*\S+\s*$|\s*\S+|\s+$", request.prompt)
            total = min(len(words) * request.repeat, request.max_tokens)
            if request.fail != "block":
                await asyncio.sleep(request.delay_s)
            first_at = time.monotonic()
            yield narrate(request, "echo", "echo", f"Echoing {total} words")
            for i, word in enumerate(islice(cycle(words), total)):
                if request.fail and i == request.fail_at:
                    self._healthy = request.fail != "unhealthy"
                    await fail(request, self._watchdog)
                self._watchdog.step()
                clock.mark_output()
                yield Output(TokenOutput(t=word, i=i))
                if request.progress:
                    yield Progress(step=i + 1, total=total)
                await asyncio.sleep(_pause_s(request, first_at, i))
            if request.fail == "no_end":
                return
            stop_reason = StopReason.MAX_TOKENS if total == request.max_tokens else StopReason.COMPLETE
            metrics = {"tokens_per_sec": total / clock.seconds}
            for event in clock.complete(self, metrics, tokens_out=total, stop_reason=stop_reason):
                yield event
            if request.fail == "after_end":
                yield Output(TokenOutput(t="too late", i=total))
        finally:
            self.active -= 1

    def is_healthy(self) -> bool:
        """False once a request has failed with `unhealthy`."""
        return self._healthy

    def memory_bytes(self) -> int:
        """Bytes of the process: there is no model."""
        return self._memory()

    def memory_source(self) -> MemorySource | None:
        """How they were counted."""
        return self._memory.source


def _pause_s(request: EchoRequest, first_at: float, i: int) -> float:
    """Seconds to wait after word `i`, for the requested rate."""
    if request.tokens_per_sec is None:
        return 0.0
    return max(0.0, first_at + (i + 1) / request.tokens_per_sec - time.monotonic())


def load(context: LoadContext) -> EchoBackend:
    """Takes `engine.load_s` seconds, waits for the file `engine.load_until`, and fails with `engine.load_error`, or
    while the file `engine.fails_while` exists."""
    options = context.worker.engine
    time.sleep(float(options.get("load_s", 0)))
    while (file := options.get("load_until")) and not Path(str(file)).exists():
        time.sleep(0.1)
    if message := options.get("load_error"):
        raise InternalError(str(message))
    if (file := options.get("fails_while")) and Path(str(file)).exists():
        raise InternalError("the model is missing")
    return EchoBackend(context.watchdog)


SPEC = WorkerSpec(
    name="echo",
    request=EchoRequest,
    outputs=(TokenOutput,),
    load=load,
    warm_up=lambda: EchoRequest(prompt="hello"),
    long_request=lambda: EchoRequest(prompt="hello again", repeat=100_000, tokens_per_sec=1000),
    needs_model=False,
)
