"""Streams under load, cancelled, and of a worker that dies."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from rbee_serve.events import End, Error
from rbee_serve.grammar import check_stream
from tests.conftest import Served
from tests.served.measured import measured
from tests.served.waiting import eventually

pytestmark = pytest.mark.ray


async def test_a_hundred_concurrent_streams_are_all_well_formed(served: Served) -> None:
    eventually(lambda: httpx.get(f"{served.base('echo-0')}/v1/ready").json()["ready"])
    url = f"{served.base('echo-0')}/v1/inference"
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(timeout=60, limits=limits) as client:
        requests = [
            client.post(url, json={"prompt": f"stream {n} ", "repeat": 25, "tokens_per_sec": 50}) for n in range(100)
        ]
        responses = await asyncio.gather(*requests)
    for n, response in enumerate(responses):
        events = check_stream(response.content)
        assert isinstance(events[-1], End), events[-1]
        assert response.content.count(f" {n}".encode()) >= 25


async def test_a_disconnect_cancels_the_request(served: Served) -> None:
    url = f"{served.base('echo-0')}/v1/inference"
    body = {"prompt": "word", "repeat": 10_000, "tokens_per_sec": 20}
    async with httpx.AsyncClient(timeout=30) as client, client.stream("POST", url, json=body) as response:
        async for _ in response.aiter_bytes():
            await asyncio.to_thread(eventually, lambda: served.working("echo-0") == 1)
            break
    await asyncio.to_thread(eventually, lambda: served.working("echo-0") == 0, 3)


async def test_a_disconnect_cancels_a_request_for_one_result(served: Served) -> None:
    url = f"{served.base('echo-0')}/v1/inference"
    body = {"prompt": "word", "repeat": 10_000, "tokens_per_sec": 20, "stream": False}
    async with httpx.AsyncClient(timeout=1) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(url, json=body)
    await asyncio.to_thread(eventually, lambda: served.working("echo-0") == 0, 3)


async def test_a_full_worker_refuses_at_once(served: Served) -> None:
    eventually(lambda: httpx.get(f"{served.base('echo-small')}/v1/ready").json()["ready"])
    url = f"{served.base('echo-small')}/v1/inference"
    body = {"prompt": "word", "delay_s": 3}
    async with httpx.AsyncClient(timeout=30) as client:
        first = asyncio.create_task(client.post(url, json=body))
        await asyncio.to_thread(eventually, lambda: served.working("echo-small") == 1)
        second = asyncio.create_task(client.post(url, json={"prompt": "word"}))
        await asyncio.to_thread(eventually, lambda: served.working("echo-small") == 2)
        started_at = time.monotonic()
        refused = await client.post(url, json=body)
        measured("full worker", "a request is refused", time.monotonic() - started_at, 1)
        assert (refused.status_code, refused.json()["code"]) == (503, "INSUFFICIENT_RESOURCES")
        assert refused.headers["retry-after"] == "1"
        for response in (await first, await second):
            assert isinstance(check_stream(response.content)[-1], End)


def test_a_worker_that_dies_during_a_stream_ends_it_with_an_error(served: Served) -> None:
    eventually(lambda: httpx.get(f"{served.base('echo-victim')}/v1/ready").json()["ready"])
    url = f"{served.base('echo-victim')}/v1/inference"
    boots = len(served.hive.ready("echo-victim"))
    response = httpx.post(
        url, json={"prompt": "a b c", "fail": "crash", "fail_at": 2, "tokens_per_sec": 10}, timeout=30
    )
    events = check_stream(response.content)
    assert isinstance(events[-1], Error)
    assert (events[-1].code, events[-1].retriable) == ("WORKER_LOST", True)
    started_at = time.monotonic()
    refused = httpx.post(url, json={"prompt": "x"}, timeout=30)
    measured("worker crashed during a stream", "a new request is refused", time.monotonic() - started_at, 1)
    assert refused.status_code == 503
    assert refused.json()["code"] in ("WORKER_LOST", "WORKER_LOADING")
    eventually(lambda: httpx.post(url, json={"prompt": "x"}, timeout=30).status_code == 200, 40)
    eventually(lambda: len(served.hive.ready("echo-victim")) == boots + 1)


def test_the_orchestrator_gets_one_ready_callback_of_each_ready_worker_and_none_of_a_failed_one(served: Served) -> None:
    eventually(lambda: served.hive.ready("echo-0"))
    [message] = served.hive.ready("echo-0")
    assert (
        message.items()
        >= {
            "worker_id": "echo-0",
            "url": served.base("echo-0"),
            "model_ref": "echo",
            "backend": "cpu",
            "device": 0,
            "port": int(served.url.rsplit(":", 1)[1]),
            "worker_type": "echo",
        }.items()
    )
    assert message["vram_bytes"] > 0
    assert message["boot_id"]
    assert not served.hive.ready("echo-broken")
    eventually(lambda: len(served.hive.heartbeats("echo-0")) >= 2)
