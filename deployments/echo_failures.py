"""The failures of the echo worker, on request: what tests need, and what no other worker type has."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Annotated, Literal

from pydantic import Field

from rbee_serve.errors_json import error_from_code
from rbee_serve.worker import InferenceRequest, InsufficientVram, Watchdog, WorkerUnhealthy

Failure = Literal["error", "exception", "oom", "hang", "block", "crash", "no_end", "after_end", "unhealthy"]


class FailingRequest(InferenceRequest):
    """The fields of a request that choose a failure."""

    delay_s: Annotated[float, Field(ge=0, le=600)] = 0.0
    """Seconds before the first event."""
    fail: Failure | None = None
    """How to fail: `error` raises the error of `code`; `exception` raises a foreign one; `oom` reports exhausted
    memory; `hang` stops without another event; `block` blocks the event loop for `delay_s`; `crash` kills the process;
    `no_end` omits the end; `after_end` continues after it; `unhealthy` marks the worker for replacement."""
    fail_at: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """How many words come before the failure."""
    code: Annotated[str, Field(pattern=r"^[A-Z_]{1,64}$")] = "INTERNAL"
    """The error code of `fail: error`."""


async def fail(request: FailingRequest, watchdog: Watchdog) -> None:
    """Fail as the request asks, in the middle of the stream."""
    match request.fail:
        case "error":
            raise error_from_code(request.code, "this failure was requested")
        case "exception":
            raise ValueError("a foreign exception that holds /secret/path and 0xdeadbeef")
        case "oom":
            raise InsufficientVram("this exhaustion was requested")
        case "hang":
            with watchdog.working():
                await asyncio.Event().wait()
        case "block":
            time.sleep(request.delay_s)  # noqa: ASYNC251 - blocks the event loop on purpose
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case "unhealthy":
            raise WorkerUnhealthy("this state was requested")
