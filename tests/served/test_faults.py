"""The fault table: what clients observe when something breaks, on real processes, and how soon."""

from __future__ import annotations

import asyncio
import signal
import statistics
import time
from collections.abc import AsyncGenerator, Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest

from rbee_serve.events import End, Error, Event
from rbee_serve.grammar import check_stream
from tests.conftest import HANGING, Served
from tests.hive import Behaviour
from tests.served.measured import measured, timed
from tests.served.models import serving
from tests.served.processes import replica_process
from tests.served.waiting import eventually

pytestmark = [pytest.mark.ray, pytest.mark.disruptive]

SLOW = {"prompt": "word", "repeat": 100_000, "tokens_per_sec": 50}
QUICK = {"prompt": "a good request", "stream": False}
LOST = ("WORKER_LOST", "WORKER_LOADING")


def infer(served: Served, worker_id: str, body: dict[str, Any]) -> httpx.Response:
    return served.client.post(f"{served.base(worker_id)}/v1/inference", json=body)


def is_ready(served: Served, worker_id: str) -> bool:
    return bool(served.client.get(f"{served.base(worker_id)}/v1/ready").json()["ready"])


def until_it_serves(served: Served, worker_id: str, within_s: float = 90) -> None:
    eventually(lambda: infer(served, worker_id, QUICK).status_code == 200, within_s)


@pytest.fixture
async def neighbour(served: Served) -> AsyncGenerator[None, None]:
    """A stream on another worker, which must not be affected."""
    until_it_serves(served, "echo-0")
    body = {"prompt": "neighbour", "repeat": 100, "tokens_per_sec": 20}
    async with httpx.AsyncClient(timeout=60) as client:
        stream = asyncio.create_task(client.post(f"{served.base('echo-0')}/v1/inference", json=body))
        yield
        events = check_stream((await stream).content)
        assert isinstance(events[-1], End)
        assert events[-1].tokens_out == 100


def end_of_stream(content: bytes) -> Event[Any]:
    """The last event of a well-formed stream."""
    return check_stream(content)[-1]


async def stream_until(
    served: Served, worker_id: str, body: dict[str, Any], started: asyncio.Event | None = None
) -> tuple[float, Event[Any]]:
    """The time at which a stream ended, and its last event. `started` is set with its first bytes."""
    content = b""
    url = f"{served.base(worker_id)}/v1/inference"
    async with httpx.AsyncClient(timeout=120) as client, client.stream("POST", url, json=body) as response:
        async for chunk in response.aiter_bytes():
            content += chunk
            if started is not None:
                started.set()
    return time.monotonic(), end_of_stream(content)


async def test_a_worker_that_is_killed_while_idle(served: Served, neighbour: None) -> None:
    worker = "echo-victim"
    await asyncio.to_thread(until_it_serves, served, worker)
    killed_at = time.monotonic()
    replica_process(worker).kill()
    with timed("worker killed while idle", "a new request is refused", 1):
        refused = await asyncio.to_thread(infer, served, worker, QUICK)
    assert (refused.status_code, refused.json()["code"] in LOST) == (503, True)
    assert int(refused.headers["retry-after"]) > 0
    await asyncio.to_thread(until_it_serves, served, worker)
    replaced_s = time.monotonic() - killed_at
    measured("worker killed while idle", "its replacement serves", replaced_s, 15)


async def test_a_worker_that_is_killed_during_streams(served: Served, neighbour: None) -> None:
    worker = "echo-victim"
    await asyncio.to_thread(until_it_serves, served, worker)
    streams = [asyncio.create_task(stream_until(served, worker, SLOW)) for _ in range(5)]
    await asyncio.sleep(1)
    killed_at = time.monotonic()
    replica_process(worker).kill()
    ends = await asyncio.gather(*streams)
    for _, last in ends:
        assert isinstance(last, Error)
        assert (last.code, last.retriable) == ("WORKER_LOST", True)
    ended_at = max(at for at, _ in ends)
    measured("worker killed during streams", "five streams end with WORKER_LOST", ended_at - killed_at, 1)
    await asyncio.to_thread(until_it_serves, served, worker)


HANGS: dict[str, dict[str, Any] | None] = {
    "engine hangs": {"prompt": "a b c", "fail": "hang", "fail_at": 1},
    "event loop blocked for 45 s": {
        "prompt": "a b c",
        "fail": "block",
        "fail_at": 1,
        "delay_s": 45,
        "tokens_per_sec": 5,
    },
    "process stopped (SIGSTOP)": None,
}


@serving(*HANGING)
async def test_hung_workers_are_replaced_and_no_heartbeat_is_late(served: Served, neighbour: None) -> None:
    started_at = time.monotonic()
    await asyncio.gather(
        *(hang(served, worker["id"], fault, body) for worker, (fault, body) in zip(HANGING, HANGS.items(), strict=True))
    )
    for worker in ("echo-0", HANGING[1]["id"]):
        beats = served.hive.beats_at(worker, started_at)
        gaps = [later - earlier for earlier, later in pairwise(beats)]
        measured("event loop blocked for 45 s", f"the longest gap between heartbeats of {worker}", max(gaps), 35)
    assert (await asyncio.to_thread(served.client.get, "/health")).status_code == 200


async def hang(served: Served, worker: str, fault: str, body: dict[str, Any] | None) -> None:
    await asyncio.to_thread(until_it_serves, served, worker)
    heartbeats = len(served.hive.heartbeats(worker))
    started_at = time.monotonic()
    started = asyncio.Event()
    stream = asyncio.create_task(stream_until(served, worker, body or SLOW, started))
    if body is None:
        await started.wait()
        replica_process(worker).send_signal(signal.SIGSTOP)
        with timed(fault, "a new request is refused", 5):
            refused = await asyncio.to_thread(infer, served, worker, QUICK)
        assert (refused.status_code, refused.json()["code"] in LOST) == (503, True)
    await asyncio.to_thread(eventually, lambda: not is_ready(served, worker), 40)
    measured(fault, "the worker is not ready", time.monotonic() - started_at, 35)
    ended_at, last = await stream
    assert isinstance(last, Error)
    assert last.code == "WORKER_LOST"
    measured(fault, "its stream ends with WORKER_LOST", ended_at - started_at, 35)
    await asyncio.to_thread(until_it_serves, served, worker)
    measured(fault, "its replacement serves", time.monotonic() - started_at, 60)
    # A replacement takes seconds, and a heartbeat is sent every second.
    assert "degraded" in [message["health_status"] for message in served.hive.heartbeats(worker)[heartbeats:]]


async def test_an_out_of_memory_error_fails_its_own_request_only(served: Served, neighbour: None) -> None:
    boots = served.hive.ready("echo-0")
    ends = await asyncio.gather(
        stream_until(served, "echo-0", {"prompt": "a b c", "fail": "oom", "fail_at": 1}),
        *(stream_until(served, "echo-0", {"prompt": "a b c", "repeat": 50}) for _ in range(5)),
    )
    assert [getattr(last, "code", "") for _, last in ends] == ["INSUFFICIENT_VRAM", *[""] * 5]
    assert infer(served, "echo-0", QUICK).status_code == 200
    assert served.hive.ready("echo-0") == boots


async def test_a_full_worker_refuses_at_once_and_others_are_not_slowed_down(served: Served) -> None:
    for worker in ("echo-0", "echo-small"):
        await asyncio.to_thread(until_it_serves, served, worker)
    async with httpx.AsyncClient(timeout=60) as client:

        async def quick(worker: str) -> tuple[float, httpx.Response]:
            started_at = time.monotonic()
            response = await client.post(f"{served.base(worker)}/v1/inference", json=QUICK)
            return time.monotonic() - started_at, response

        before = [(await quick("echo-0"))[0] for _ in range(50)]
        held = [
            asyncio.create_task(client.post(f"{served.base('echo-small')}/v1/inference", json=body))
            for body in ({**QUICK, "delay_s": 10}, QUICK)
        ]
        await asyncio.sleep(1)
        refusals, during = [], []
        for _ in range(50):
            seconds, refused = await quick("echo-small")
            assert (refused.status_code, refused.json()["code"]) == (503, "INSUFFICIENT_RESOURCES")
            assert int(refused.headers["retry-after"]) > 0
            refusals.append(seconds)
            during.append((await quick("echo-0"))[0])
        assert [(await request).status_code for request in held] == [200, 200]
    measured("more load than capacity", "a refusal (median of 50)", statistics.median(refusals), 0.1)
    measured("more load than capacity", "a response of another worker before (median)", statistics.median(before), 1)
    measured("more load than capacity", "a response of another worker meanwhile (median)", statistics.median(during), 1)


@pytest.fixture
def good_behaviour(served: Served) -> Iterator[None]:
    """The fake orchestrator behaves again at the end of the test, and knows every worker."""
    eventually(lambda: served.hive.heartbeats("echo-0"), 60)
    yield
    served.hive.behaviour = "good"
    since = time.monotonic()
    eventually(lambda: len(served.hive.beats_at("echo-0", since)) >= 2)


@pytest.mark.parametrize("behaviour", ["refuse", "redirect", "forget", "nonsense", "trickle", "hang"])
def test_a_misbehaving_orchestrator_does_not_affect_requests(
    served: Served, good_behaviour: None, behaviour: Behaviour
) -> None:
    times = []
    served.hive.behaviour = behaviour
    started_at = time.monotonic()
    while time.monotonic() - started_at < 3.2:
        sent_at = time.monotonic()
        assert infer(served, "echo-0", QUICK).status_code == 200
        times.append(time.monotonic() - sent_at)
    measured(
        f"orchestrator: {behaviour}", f"a response meanwhile (median of {len(times)})", statistics.median(times), 1
    )
    beats = served.hive.beats_at("echo-0", started_at)
    # A call takes at most 5 s, and the next heartbeat is not queued behind it.
    assert 1 <= len(beats) <= 5
    assert served.hive.trapped == 0
    if behaviour == "forget":
        eventually(lambda: len(served.hive.ready("echo-0")) > 1)


async def test_the_death_of_the_hub_does_not_affect_requests_and_heartbeats_resume(
    served: Served, neighbour: None
) -> None:
    await asyncio.to_thread(eventually, lambda: served.hive.heartbeats("echo-0"), 60)
    killed_at = time.monotonic()
    replica_process("hub").kill()
    for _ in range(20):
        assert (await asyncio.to_thread(infer, served, "echo-0", QUICK)).status_code == 200
        await asyncio.sleep(0.05)
    await asyncio.to_thread(eventually, lambda: served.hive.beats_at("echo-0", killed_at + 0.5), 40)
    resumed_at = served.hive.beats_at("echo-0", killed_at + 0.5)[0]
    measured("hub killed", "heartbeats resume", resumed_at - killed_at, 35)
    await asyncio.to_thread(eventually, lambda: is_ready(served, "echo-two"))
