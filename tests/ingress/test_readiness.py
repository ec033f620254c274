"""What the routes about a worker's state return while it loads, is replaced, waits, or has failed for good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest

from deployments.echo import SPEC, EchoRequest
from rbee_serve.config import ApplicationConfig, LimitsConfig, WorkerConfig
from rbee_serve.ingress.app import build_ingress
from rbee_serve.ingress.origin import OriginRules
from rbee_serve.ingress.router import Router
from rbee_serve.ingress.services import IngressServices, Worker
from rbee_serve.ingress.worker_state_cache import WorkerStateCache
from rbee_serve.state import LoadProgress, ReplicaState, Snapshot, WorkerState

SERVING = ReplicaState(worker_id="echo-0", replica_id="r", boot_id="b", phase="ready", backend="cpu")
DEAD = msgspec.structs.replace(SERVING, healthy=False, error="its engine is dead")
LOADS = msgspec.structs.replace(SERVING, phase="loading", load=LoadProgress(stage="warming_up"))
FAILED = msgspec.structs.replace(SERVING, phase="error", error="no weights", error_code="INSUFFICIENT_VRAM")
ENDED = {"was_ready": True, "lost": "its process has ended"}
URL = "http://localhost/workers/echo-0/v1/loading/progress"
BASE = "/workers/echo-0"


def state(*replicas: ReplicaState, **changes: Any) -> WorkerState:
    return WorkerState(worker_id="echo-0", desired_replicas=1, replicas=replicas, **changes)


FIRST_LOAD = state(LOADS)
STARTS = state(**ENDED)
WAITS = state(**ENDED, waits_for="no GPU is free")
RELOADS = state(LOADS, **ENDED)
UNHEALTHY = state(DEAD, was_ready=True, lost="its engine is dead")
TRIED_AGAIN = state(FAILED, was_ready=True, lost="no weights")
GIVEN_UP = state(FAILED, given_up=True, lost="no weights")
GIVEN_UP_UNHEARD = state(given_up=True)
COMING = {
    "first load": (FIRST_LOAD, "still loading (warming_up)"),
    "nothing known yet": (state(), "still loading"),
    "replacement starts": (STARTS, "its process has ended; a replacement is starting"),
    "replacement waits": (WAITS, "its process has ended; a replacement is starting: no GPU is free"),
    "replacement loads": (RELOADS, "its process has ended; a replacement is loading"),
    "engine is dead": (UNHEALTHY, "its engine is dead; a replacement is starting"),
    "replacement failed": (TRIED_AGAIN, "no weights; a replacement is starting"),
}


@asynccontextmanager
async def client(*states: WorkerState, every_s: float = 0.05) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the ingress, which receives these states one after the other."""
    snapshots = [Snapshot(version=n, workers=(worker,)) for n, worker in enumerate(states, start=1)]
    cache = WorkerStateCache(lambda version, max_wait_s: watch(), ("echo-0",))
    cache.snapshot = snapshots.pop(0)

    async def watch() -> Snapshot:
        await asyncio.sleep(every_s if snapshots else 100)
        return snapshots.pop(0)

    config = ApplicationConfig(workers=[WorkerConfig(id="echo-0", type="echo")])
    worker = Worker(config.workers[0], SPEC, EchoRequest)
    services = IngressServices({"echo-0": worker}, LimitsConfig(), cache, Router({}, 1.0), "http://localhost", 80)
    following = asyncio.create_task(cache.follow(lambda worker_id: None, lambda: None))
    transport = httpx.ASGITransport(build_ingress(services, OriginRules.of(config), None))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as opened:
        yield opened
    following.cancel()


def frames(body: str) -> list[str]:
    return [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]


@pytest.mark.parametrize("case", COMING)
async def test_as_long_as_a_replica_may_come_every_answer_is_to_try_again(case: str) -> None:
    worker, reason = COMING[case]
    async with client(worker) as http:
        refused = await http.post(f"{BASE}/v1/inference", json={"prompt": "a"})
        body = refused.json()
        assert (refused.status_code, body["code"], body["retriable"]) == (503, "WORKER_LOADING", True)
        assert int(refused.headers["retry-after"]) > 0
        assert reason in body["message"]
        assert body["progress_url"] == URL
        assert body.get("progress") == ({"stage": "warming_up"} if worker.load else None)
        ready = (await http.get(f"{BASE}/v1/ready")).json()
        assert ready == {"ready": False, "state": "loading", "progress_url": URL}
        everything = await http.get("/v1/ready")
        assert (everything.status_code, int(everything.headers["retry-after"]) > 0) == (503, True)
        [mine] = everything.json()["workers"]
        assert (mine["state"], mine["reason"]) == ("loading", reason)
        assert (await http.get(f"{BASE}/info")).json()["status"] == "starting"
        [described] = (await http.get("/v1/workers")).json()["workers"]
        assert described["status"] == "starting"
        health = await http.get(f"{BASE}/health")
        assert health.status_code == (503 if worker.was_ready else 200)
        assert ("retry-after" in health.headers) == worker.was_ready


@pytest.mark.parametrize(
    ("worker", "reason"),
    [(GIVEN_UP, "no weights"), (GIVEN_UP_UNHEARD, "no replica could be started; Ray Serve's log has the reason")],
)
async def test_once_nothing_more_is_tried_every_answer_is_final(worker: WorkerState, reason: str) -> None:
    async with client(worker) as http:
        for path in (f"{BASE}/v1/inference", "progress"):
            refused = await (http.get(URL) if path == "progress" else http.post(path, json={"prompt": "a"}))
            body = refused.json()
            assert refused.status_code == 503
            assert body == {"code": "WORKER_UNHEALTHY", "message": reason, "retriable": False}
            assert "retry-after" not in refused.headers
        assert (await http.get(f"{BASE}/v1/ready")).json() == {"ready": False, "state": "error"}
        everything = await http.get("/v1/ready")
        assert (everything.status_code, everything.json()["workers"][0]["state"]) == (503, "error")
        assert "retry-after" not in everything.headers
        assert (await http.get(f"{BASE}/info")).json()["status"] == "error"
        health = await http.get(f"{BASE}/health")
        assert (health.status_code, "retry-after" in health.headers) == (503, False)


async def test_who_follows_the_load_waits_through_a_loss_and_a_failed_attempt() -> None:
    states = (FIRST_LOAD, STARTS, WAITS, RELOADS, TRIED_AGAIN, STARTS, RELOADS, state(SERVING, was_ready=True))
    async with client(*states) as http:
        followed = await http.get(URL)
    assert followed.status_code == 200
    assert frames(followed.text)[-2:] == ['{"stage":"ready"}', "[DONE]"]
    assert set(frames(followed.text)[:-2]) == {'{"stage":"warming_up"}'}


@pytest.mark.parametrize("before", [(STARTS,), (UNHEALTHY,), (RELOADS, TRIED_AGAIN)])
async def test_who_follows_the_load_is_told_that_nothing_more_is_tried(before: Iterable[WorkerState]) -> None:
    async with client(*before, GIVEN_UP) as http:
        followed = await http.get(URL)
    assert frames(followed.text)[-2:] == ['{"stage":"error","message":"no weights"}', "[DONE]"]


async def test_a_load_that_waits_for_its_gpu_shows_which_worker_holds_it() -> None:
    waits = state(msgspec.structs.replace(LOADS, load=LoadProgress(stage="waiting_for_gpu", held_by="draw-0")))
    async with client(waits, state(SERVING)) as http:
        refused = await http.post(f"{BASE}/v1/inference", json={"prompt": "a"})
        [mine] = (await http.get("/v1/ready")).json()["workers"]
        followed = await http.get(URL)
    assert refused.json()["progress"] == {"stage": "waiting_for_gpu"}
    assert mine["progress"] == {"stage": "waiting_for_gpu", "held_by": "draw-0"}
    assert mine["reason"] == "still loading (waiting_for_gpu)"
    assert frames(followed.text)[0] == '{"stage":"waiting_for_gpu","held_by":"draw-0"}'


async def test_a_worker_that_serves_has_no_progress_to_follow() -> None:
    async with client(state(SERVING)) as http:
        refused = await http.get(URL)
    assert (refused.status_code, refused.json()["code"]) == (503, "WORKER_UNHEALTHY")
    assert refused.json()["message"] == "worker echo-0 has loaded, so there is no progress to follow; send it requests"


async def test_the_code_of_a_failure_is_shown_while_another_attempt_comes_and_not_once_it_serves() -> None:
    for worker, code in ((TRIED_AGAIN, "INSUFFICIENT_VRAM"), (state(SERVING, FAILED), None)):
        async with client(worker) as http:
            [mine] = (await http.get("/v1/ready")).json()["workers"]
        assert mine.get("code") == code


async def test_a_worker_that_lacks_a_replica_is_ready_and_shows_why() -> None:
    degraded = msgspec.structs.replace(state(SERVING, **ENDED), desired_replicas=2)
    for worker, reason in ((degraded, STARTS.reason), (state(SERVING, **ENDED), None)):
        async with client(worker) as http:
            [mine] = (await http.get("/v1/ready")).json()["workers"]
        assert (mine["ready"], mine.get("reason")) == (True, reason)
