"""The fault table for the language model: its engine runs in processes of its own, with its own scheduler."""

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
import pytest

from rbee_serve.events import End, Error
from rbee_serve.grammar import check_stream
from tests.conftest import Served
from tests.served.measured import measured
from tests.served.models import LLM, MULTIMODAL, serving
from tests.served.processes import engine_processes, replica_process
from tests.served.waiting import eventually

# The engine of the multimodal worker must survive the faults of this one.
pytestmark = [pytest.mark.ray, pytest.mark.disruptive, serving(LLM, MULTIMODAL)]

BYTES_IN_FLOAT32 = 538_060_032
"""Of the model. A processor with fast bfloat16 loads half of it."""
STAGES = ["starting", "starting_engine", "loading_to_vram", "preparing_engine", "warming_up", "ready"]
ENDLESS = {"prompt": "Once", "max_tokens": 1500, "ignore_eos": True}
QUICK = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0, "stream": False}


@pytest.fixture(autouse=True)
def loaded(served: Served) -> None:
    eventually(lambda: is_ready(served), 300)


def is_ready(served: Served) -> bool:
    return bool(served.client.get("/workers/llm-0/v1/ready").json()["ready"])


def replica(served: Served) -> dict[str, Any]:
    """The state of its one replica, as the server reports it."""
    workers = served.client.get("/v1/workers").json()["workers"]
    [state] = next(worker["replicas"] for worker in workers if worker["id"] == "llm-0")
    return dict(state)


def until_it_serves(served: Served) -> None:
    """A request gets the right text. Right after a start it may get a 503, after which a client tries again."""

    def is_right() -> bool:
        response = served.client.post("/workers/llm-0/v1/inference", json=QUICK)
        assert response.status_code in (200, 503), response.text
        return response.status_code == 200 and str(response.json()["text"]).startswith(" Paris")

    eventually(is_right, 30)


def requests_in_progress(served: Served) -> int:
    """Requests in the replica and, by the count of its scheduler, in the engine."""
    state = replica(served)
    return int(state["running"] + state["queued"] + state["engine_requests"])


async def test_two_hundred_disconnects_at_random_moments_leave_the_engine_empty(served: Served) -> None:
    rng = random.Random(20)
    limit = asyncio.Semaphore(16)
    url = f"{served.base('llm-0')}/v1/inference"

    async def disconnect(client: httpx.AsyncClient, number: int, tokens: int) -> None:
        body = {**ENDLESS, "prompt": f"{number} Once upon a time", "stream": tokens > 0}
        async with limit:
            if tokens == 0:
                with suppress(httpx.ReadTimeout):
                    await client.post(url, json=body, timeout=httpx.Timeout(30, read=rng.uniform(0.05, 1)))
                return
            async with client.stream("POST", url, json=body) as response:
                seen = 0
                async for chunk in response.aiter_raw():
                    seen += chunk.count(b'"token"')
                    if seen >= tokens:
                        break

    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=32)) as client:
        await asyncio.gather(*(disconnect(client, number, rng.choice([0, 1, 2, 8])) for number in range(200)))
    disconnected_at = time.monotonic()
    await asyncio.to_thread(eventually, lambda: requests_in_progress(served) == 0)
    measured(
        "200 clients disconnect from the LLM",
        "nothing runs or is queued in its scheduler",
        time.monotonic() - disconnected_at,
        2,
    )
    await asyncio.to_thread(until_it_serves, served)


async def test_five_hundred_requests_and_long_prompts_do_not_count_as_a_hang(served: Served) -> None:
    boots = list(served.hive.ready("llm-0"))
    url = f"{served.base('llm-0')}/v1/inference"
    worst = 0

    async def observe() -> None:
        nonlocal worst
        while True:
            state = await asyncio.to_thread(replica, served)
            assert state["healthy"]
            worst = max(worst, state.get("last_progress_age_s", 0))
            await asyncio.sleep(0.25)

    observer = asyncio.create_task(observe())
    started_at = time.monotonic()
    async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=600)) as client:
        bodies = [{"prompt": f"{n} " * 3, "max_tokens": 2, "ignore_eos": True} for n in range(500)]
        bodies += [{"prompt": f"{n} " + "word " * 1900, "max_tokens": 2, "ignore_eos": True} for n in range(4)]
        responses = await asyncio.gather(*(client.post(url, json=body) for body in bodies))
    assert not observer.done()
    observer.cancel()
    for response in responses:
        assert isinstance(check_stream(response.content)[-1], End)
    print(f"504 requests in {time.monotonic() - started_at:.1f} s")
    measured("500 requests queued, long prompts", "the longest time without a step of the engine", worst, 27)
    assert served.hive.ready("llm-0") == boots


def kill_engine(served: Served) -> None:
    signal_engine(signal.SIGKILL)


def stop_engine(served: Served) -> None:
    signal_engine(signal.SIGSTOP)


def kill_replica(served: Served) -> None:
    replica_process("llm-0").kill()


def signal_engine(signal_number: signal.Signals) -> None:
    """Send a signal to the engine of the language model, and to no other worker's."""
    processes = engine_processes("llm-0")
    assert processes
    for process in processes:
        process.send_signal(signal_number)


@pytest.mark.parametrize(
    ("fault", "inject", "ends_within_s"),
    [
        ("LLM replica killed during a stream", kill_replica, 2),
        ("LLM engine killed during a stream", kill_engine, 2),
        ("LLM engine stopped (SIGSTOP)", stop_engine, 35),
    ],
)
async def test_a_fault_ends_its_stream_and_the_worker_is_replaced(
    served: Served, fault: str, inject: Callable[[Served], None], ends_within_s: float
) -> None:
    boots = len(served.hive.ready("llm-0"))
    other_engine = engine_processes(MULTIMODAL["id"])
    assert other_engine
    neighbour = asyncio.create_task(read(served, "echo-0", {"prompt": "n", "repeat": 60, "tokens_per_sec": 20}))
    stream = asyncio.create_task(read(served, "llm-0", ENDLESS))
    await asyncio.sleep(3)
    fault_at = time.monotonic()
    inject(served)
    received = await stream
    print(f"{fault}: the last bytes are {received[-250:]!r}")
    measured(fault, "its stream ends with WORKER_LOST", time.monotonic() - fault_at, ends_within_s)
    events = check_stream(received)
    assert isinstance(events[-1], Error)
    assert (events[-1].code, events[-1].retriable) == ("WORKER_LOST", True)
    assert isinstance(check_stream(await neighbour)[-1], End)
    await asyncio.to_thread(eventually, lambda: not is_ready(served), 40)
    measured(fault, "the worker is not ready", time.monotonic() - fault_at, 35)
    assert (await asyncio.to_thread(served.client.get, "/health")).status_code == 200
    load = await asyncio.to_thread(followed_load, served)
    assert [stage for stage, _ in groupby(load, lambda progress: progress["stage"])] == STAGES
    weights = [progress for progress in load if progress["stage"] == "loading_to_vram"]
    assert {progress["layers_total"] for progress in weights} == {30}
    assert {progress["bytes_total"] for progress in weights} in ({BYTES_IN_FLOAT32}, {BYTES_IN_FLOAT32 // 2})
    layers = [progress["layers_loaded"] for progress in weights]
    assert layers == sorted(layers)
    measured(fault, "its replacement is ready, model loaded", time.monotonic() - fault_at, 300)
    await asyncio.to_thread(until_it_serves, served)
    eventually(lambda: len(served.hive.ready("llm-0")) == boots + 1)
    assert engine_processes(MULTIMODAL["id"]) == other_engine
    assert served.client.get(f"/workers/{MULTIMODAL['id']}/v1/ready").json()["ready"]


def followed_load(served: Served) -> list[dict[str, Any]]:
    """The frames of `/v1/loading/progress`, from the first to the end."""
    url = f"{served.base('llm-0')}/v1/loading/progress"
    response = httpx.Response(503)
    deadline = time.monotonic() + 60
    while response.status_code == 503 and time.monotonic() < deadline:
        response = httpx.get(url, timeout=300)
    *frames, done, _ = [frame for frame in response.text.split("\n\n") if not frame.startswith(":")]
    assert done == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


async def read(served: Served, worker: str, body: dict[str, Any]) -> bytes:
    """All bytes of a stream."""
    async with httpx.AsyncClient(timeout=120) as client:
        response = await client.post(f"{served.base(worker)}/v1/inference", json=body)
        return response.content
