"""The echo worker: no model, every behaviour on request.

It answers with the words of its prompt, at the rate asked for, and fails in the way asked for. It is the template for
new worker types (copy it, then replace `execute` and the fields) and the worker under most tests.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncGenerator
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from rbee_serve.errors import InsufficientVram, InternalError, WorkerUnhealthy, error_from_code
from rbee_serve.events import End, Event, Metrics, Narration, Output, Progress, StopReason
from rbee_serve.outputs import TokenOutput
from rbee_serve.request import InferenceRequest
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.memory import MemoryGauge, process_tree_bytes
from rbee_serve.worker.spec import LoadContext, WorkerSpec
from rbee_serve.worker.watchdog import Watchdog

Failure = Literal["error", "exception", "oom", "hang", "block", "crash", "no_end", "after_end", "unhealthy"]


class EchoRequest(InferenceRequest):
    """What to echo and how to misbehave."""

    prompt: Annotated[str, Field(min_length=1, max_length=32768, repr=False)]
    """The text to echo, word by word."""
    repeat: Annotated[int, Field(ge=1, le=100_000)] = 1
    """How many times the text is echoed."""
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 1_000_000
    """The largest number of words to answer with."""
    tokens_per_sec: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """The rate. As fast as it goes if left out."""
    delay_s: Annotated[float, Field(ge=0, le=600)] = 0.0
    """Seconds before the first event."""
    fail: Failure | None = None
    """How to fail: `error` raises the error of `code`; `exception` raises a foreign one; `oom` reports exhausted
    memory; `hang` stops without a word; `block` blocks the event loop for `delay_s`; `crash` kills the process;
    `no_end` leaves the end out; `after_end` goes on after it; `unhealthy` marks the worker for replacement."""
    fail_at: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """How many words come before the failure."""
    code: Annotated[str, Field(pattern=r"^[A-Z_]{1,64}$")] = "INTERNAL"
    """The error code of `fail: error`."""
    progress: bool = False
    """Whether each word is followed by a `progress` event."""


class EchoBackend(InferenceBackend[EchoRequest, TokenOutput]):
    """Echoes. Counts what it works on, so that tests see whether a cancelled request has stopped."""

    def __init__(self, steps: Watchdog) -> None:
        self.active = 0
        self._steps = steps
        self._healthy = True
        self._memory = MemoryGauge(process_tree_bytes)

    async def execute(self, request: EchoRequest) -> AsyncGenerator[Event[TokenOutput], None]:
        """The words of the prompt as tokens; joined they are the prompt."""
        began = time.monotonic()
        self.active += 1
        try:
            once = re.findall(r"\s*\S+\s*$|\s*\S+|\s+$", request.prompt)
            total = min(len(once) * request.repeat, request.max_tokens)
            if request.fail != "block":
                await asyncio.sleep(request.delay_s)
            first = time.monotonic()
            yield Narration(actor="echo", action="echo", target="prompt", human=f"Echoing {total} words")
            for i, word in enumerate(islice(cycle(once), total)):
                if request.fail and i == request.fail_at:
                    await self._fail(request)
                self._steps.step()
                yield Output(TokenOutput(t=word, i=i))
                if request.progress:
                    yield Progress(step=i + 1, total=total)
                await asyncio.sleep(self._pause(request, first, i))
            if request.fail == "no_end":
                return
            seconds = time.monotonic() - began
            yield Metrics({"tokens_per_sec": total / max(seconds, 1e-9), "vram_bytes": self.memory_bytes()})
            yield End(
                tokens_out=total,
                decode_time_ms=round(seconds * 1000),
                stop_reason=StopReason.MAX_TOKENS if total == request.max_tokens else StopReason.COMPLETE,
            )
            if request.fail == "after_end":
                yield Output(TokenOutput(t="too late", i=total))
        finally:
            self.active -= 1

    def _pause(self, request: EchoRequest, first: float, i: int) -> float:
        if request.tokens_per_sec is None:
            return 0.0
        return max(0.0, first + (i + 1) / request.tokens_per_sec - time.monotonic())

    async def _fail(self, request: EchoRequest) -> None:
        match request.fail:
            case "error":
                raise error_from_code(request.code, "this failure was asked for")
            case "exception":
                raise ValueError("a foreign exception that holds /secret/path and 0xdeadbeef")
            case "oom":
                raise InsufficientVram("this exhaustion was asked for")
            case "hang":
                with self._steps.working():
                    await asyncio.Event().wait()
            case "block":
                time.sleep(request.delay_s)  # noqa: ASYNC251 - blocking the loop is the point
            case "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            case "unhealthy":
                self._healthy = False
                raise WorkerUnhealthy("this state was asked for")

    def is_healthy(self) -> bool:
        """False once a request has asked for it."""
        return self._healthy

    def memory_bytes(self) -> int:
        """The process's own memory: there is no model."""
        return self._memory()


def load(context: LoadContext) -> EchoBackend:
    """Takes `engine.load_s` seconds, waits for the file `engine.load_until`, and fails with `engine.load_error`."""
    options = context.worker.engine
    time.sleep(float(options.get("load_s", 0)))
    while (watch_each := options.get("load_until")) and not Path(str(watch_each)).exists():
        time.sleep(0.1)
    if message := options.get("load_error"):
        raise InternalError(str(message))
    return EchoBackend(context.watchdog)


SPEC = WorkerSpec(
    name="echo",
    request=EchoRequest,
    outputs=(TokenOutput,),
    load=load,
    warm_up=lambda: EchoRequest(prompt="hello"),
    needs_model=False,
)
