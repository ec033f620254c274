"""The echo of the baselines: the same words, events and pauses as `deployments/echo.py`, as pydantic models."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from itertools import cycle, islice
from typing import Literal

from pydantic import BaseModel


class EchoRequest(BaseModel):
    """What to echo."""

    prompt: str
    repeat: int = 1
    max_tokens: int = 1_000_000
    stream: bool = True


class Started(BaseModel):
    type: Literal["started"] = "started"
    job_id: str
    model: str = "echo"
    started_at: str


class Narration(BaseModel):
    type: Literal["narration"] = "narration"
    actor: str = "echo"
    action: str = "echo"
    target: str = "prompt"
    human: str


class Token(BaseModel):
    type: Literal["token"] = "token"
    t: str
    i: int


class Metrics(BaseModel):
    type: Literal["metrics"] = "metrics"
    tokens_per_sec: float
    vram_bytes: int = 0


class End(BaseModel):
    type: Literal["end"] = "end"
    tokens_out: int
    decode_time_ms: int
    stop_reason: str = "COMPLETE"


class Result(BaseModel):
    job_id: str
    text: str
    tokens_out: int
    metrics: Metrics


async def echo(request: EchoRequest) -> AsyncIterator[BaseModel]:
    """The events of one request; after each word other tasks may run, as after a model's step."""
    began = time.monotonic()
    yield Started(job_id=f"job-{uuid.uuid4().hex}", started_at=datetime.now(UTC).isoformat(timespec="milliseconds"))
    once = re.findall(r"\s*\S+\s*$|\s*\S+|\s+$", request.prompt)
    total = min(len(once) * request.repeat, request.max_tokens)
    yield Narration(human=f"Echoing {total} words")
    for i, word in enumerate(islice(cycle(once), total)):
        yield Token(t=word, i=i)
        await asyncio.sleep(0)
    seconds = time.monotonic() - began
    yield Metrics(tokens_per_sec=total / max(seconds, 1e-9))
    yield End(tokens_out=total, decode_time_ms=round(seconds * 1000))


async def frames(request: EchoRequest) -> AsyncIterator[str]:
    """The same as server-sent events."""
    async for event in echo(request):
        yield f"data: {event.model_dump_json()}\n\n"
    yield "data: [DONE]\n\n"


async def result(request: EchoRequest) -> Result:
    """The whole result."""
    job_id, text, metrics = "", [], Metrics(tokens_per_sec=0)
    async for event in echo(request):
        match event:
            case Started():
                job_id = event.job_id
            case Token():
                text.append(event.t)
            case Metrics():
                metrics = event
    return Result(job_id=job_id, text="".join(text), tokens_out=len(text), metrics=metrics)
