"""The fault table for the language model: its engine is other processes, and its own scheduler counts."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import groupby
from typing import Any

import httpx
import psutil
import pytest

from rbee_serve.events import End, Error
from rbee_serve.grammar import check_stream
from tests.conftest import Served
from tests.served.measured import measured
from tests.served.processes import replica_process
from tests.served.waiting import eventually

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.disruptive]

STAGES = ["starting", "starting_engine", "loading_to_vram", "preparing_engine", "warming_up", "ready"]
ENDLESS = {"prompt": "Once", "max_tokens": 1500, "ignore_eos": True}
QUICK = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0, "stream": False}


@pytest.fixture(autouse=True)
def loaded(served: Served) -> None:
    eventually(lambda: is_ready(served), 300)


def is_ready(served: Served) -> bool:
    return bool(served.client.get("/workers/llm-0/v1/ready").json()["ready"])


def replica(served: Served) -> dict[str, Any]:
    """What is told of its one replica."""
    workers = served.client.get("/v1/workers").json()["workers"]
    [state] = next(worker["replicas"] for worker in workers if worker["id"] == "llm-0")
    return dict(state)


def until_it_serves(served: Served) -> None:
    """A request is answered rightly. Right after a start it may have to come again, as any client is told."""

    def is_right() -> bool:
        answer = served.client.post("/workers/llm-0/v1/inference", json=QUICK)
        assert answer.status_code in (200, 503), answer.text
        return answer.status_code == 200 and str(answer.json()["text"]).startswith(" Paris")

    eventually(is_right, 30)


def at_work(served: Served) -> int:
    """Requests in the replica and, by the scheduler's own count, in the engine."""
    state = replica(served)
    return int(state["running"] + state["queued"] + state["engine_requests"])


async def test_two_hundred_clients_that_leave_at_any_moment_leave_the_engine_empty(served: Served) -> None:
    chance = random.Random(20)
    at_once = asyncio.Semaphore(16)
    url = f"{served.base('llm-0')}/v1/inference"

    async def leave(client: httpx.AsyncClient, number: int, tokens: int) -> None:
        body = {**ENDLESS, "prompt": f"{number} Once upon a time", "stream": tokens > 0}
        async with at_once:
            if tokens == 0:
                with suppress(httpx.ReadTimeout):
                    await client.post(url, json=body, timeout=httpx.Timeout(30, read=chance.uniform(0.05, 1)))
                return
            async with client.stream("POST", url, json=body) as answer:
                seen = 0
                async for chunk in answer.aiter_raw():
                    seen += chunk.count(b'"token"')
                    if seen >= tokens:
                        break

    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=32)) as client:
        await asyncio.gather(*(leave(client, number, chance.choice([0, 1, 2, 8])) for number in range(200)))
    left_at = time.monotonic()
    await asyncio.to_thread(eventually, lambda: at_work(served) == 0)
    measured(
        "200 clients leave the LLM", "nothing runs or waits in its scheduler", time.monotonic() - left_at, at_most=2
    )
    await asyncio.to_thread(until_it_serves, served)


async def test_five_hundred_requests_and_long_prompts_are_work_and_no_hang(served: Served) -> None:
    boots = list(served.hive.ready("llm-0"))
    url = f"{served.base('llm-0')}/v1/inference"
    worst = 0

    async def look() -> None:
        nonlocal worst
        while True:
            state = await asyncio.to_thread(replica, served)
            assert state["healthy"]
            worst = max(worst, state.get("last_progress_age_s", 0))
            await asyncio.sleep(0.25)

    looking = asyncio.create_task(look())
    began = time.monotonic()
    async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=600)) as client:
        bodies = [{"prompt": f"{n} " * 3, "max_tokens": 2, "ignore_eos": True} for n in range(500)]
        bodies += [{"prompt": f"{n} " + "word " * 1900, "max_tokens": 2, "ignore_eos": True} for n in range(4)]
        answers = await asyncio.gather(*(client.post(url, json=body) for body in bodies))
    assert not looking.done()
    looking.cancel()
    for answer in answers:
        assert isinstance(check_stream(answer.content)[-1], End)
    print(f"504 requests in {time.monotonic() - began:.1f} s")
    measured("500 requests queued, long prompts", "the longest time without a step of the engine", worst, at_most=27)
    assert served.hive.ready("llm-0") == boots


def kill_engine(served: Served) -> None:
    signal_engine(signal.SIGKILL)


def stop_engine(served: Served) -> None:
    signal_engine(signal.SIGSTOP)


def kill_replica(served: Served) -> None:
    replica_process("llm-0").kill()


def signal_engine(number: signal.Signals) -> None:
    for process in psutil.Process().children(recursive=True):
        if "VLLM::" in process.name():
            process.send_signal(number)


@pytest.mark.parametrize(
    ("fault", "strike", "ends_within_s"),
    [
        ("LLM replica killed in mid-stream", kill_replica, 2),
        ("LLM engine killed in mid-stream", kill_engine, 2),
        ("LLM engine stopped (SIGSTOP)", stop_engine, 35),
    ],
)
async def test_it_is_told_and_replaced(
    served: Served, fault: str, strike: Callable[[Served], None], ends_within_s: float
) -> None:
    boots = len(served.hive.ready("llm-0"))
    neighbour = asyncio.create_task(read(served, "echo-0", {"prompt": "n", "repeat": 60, "tokens_per_sec": 20}))
    stream = asyncio.create_task(read(served, "llm-0", ENDLESS))
    await asyncio.sleep(3)
    struck_at = time.monotonic()
    strike(served)
    received = await stream
    print(f"{fault}: the last bytes are {received[-250:]!r}")
    measured(fault, "its stream ends with WORKER_LOST", time.monotonic() - struck_at, ends_within_s)
    events = check_stream(received)
    assert isinstance(events[-1], Error)
    assert (events[-1].code, events[-1].retriable) == ("WORKER_LOST", True)
    assert isinstance(check_stream(await neighbour)[-1], End)
    await asyncio.to_thread(eventually, lambda: not is_ready(served), 40)
    measured(fault, "the worker is not ready", time.monotonic() - struck_at, at_most=35)
    assert (await asyncio.to_thread(served.client.get, "/health")).status_code == 200
    load = await asyncio.to_thread(followed_load, served)
    assert [stage for stage, _ in groupby(load, lambda progress: progress["stage"])] == STAGES
    weights = [progress for progress in load if progress["stage"] == "loading_to_vram"]
    assert {(progress["layers_total"], progress["bytes_total"]) for progress in weights} == {(30, 538_060_032)}
    layers = [progress["layers_loaded"] for progress in weights]
    assert layers == sorted(layers)
    measured(fault, "its replacement is ready, model loaded", time.monotonic() - struck_at, at_most=300)
    await asyncio.to_thread(until_it_serves, served)
    eventually(lambda: len(served.hive.ready("llm-0")) == boots + 1)


def followed_load(served: Served) -> list[dict[str, Any]]:
    """The frames of `/v1/loading/progress`, from when there are some to the end."""
    url = f"{served.base('llm-0')}/v1/loading/progress"
    answer = httpx.Response(503)
    deadline = time.monotonic() + 60
    while answer.status_code == 503 and time.monotonic() < deadline:
        answer = httpx.get(url, timeout=300)
    *frames, done, _ = [frame for frame in answer.text.split("\n\n") if not frame.startswith(":")]
    assert done == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


async def read(served: Served, worker: str, body: dict[str, Any]) -> bytes:
    """All bytes of a stream."""
    async with httpx.AsyncClient(timeout=120) as client:
        answer = await client.post(f"{served.base(worker)}/v1/inference", json=body)
        return answer.content
