"""What clients are told while a worker is being replaced: to try again, why, and how far it is; on real processes."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from rbee_serve.events import Error
from tests.conftest import ECHO, Served
from tests.served.frontends import Frontend, via
from tests.served.measured import measured
from tests.served.models import serving
from tests.served.processes import replica_process, replica_processes
from tests.served.test_faults import QUICK, SLOW, infer, stream_until, until_it_serves
from tests.served.waiting import eventually

MISSING = Path(tempfile.gettempdir()) / f"rbee-serve-echo-missing-{os.getpid()}"
"""While this file exists, `echo-reload` cannot be loaded."""
RELOAD: dict[str, Any] = {"id": "echo-reload", **ECHO, "engine": {"load_s": 2, "fails_while": str(MISSING)}}
NEVER: dict[str, Any] = {"id": "echo-never", **ECHO, "engine": {"load_until": str(MISSING / "never")}}

pytestmark = [pytest.mark.ray, pytest.mark.disruptive, serving(RELOAD, NEVER)]


@pytest.fixture(autouse=True)
def model_is_back() -> Iterator[None]:
    """After each test the model can be loaded."""
    yield
    MISSING.unlink(missing_ok=True)


class Observer:
    """Asks for everything that shows the state of a worker, again and again, as clients do."""

    def __init__(self, url: str, worker: str) -> None:
        self.worker = worker
        self.refusals: list[httpx.Response] = []
        self.states: list[dict[str, Any]] = []
        self.reasons: list[str] = []
        self.down_s = 0.0
        self._client = httpx.Client(base_url=url, timeout=30)

    def until_it_serves(self, within_s: float = 60) -> None:
        """Until a request succeeds after at least one was refused."""
        with self._client:
            self._until_it_serves(time.monotonic(), within_s)

    def _until_it_serves(self, started_at: float, within_s: float) -> None:
        while True:
            response = self._client.post(f"/workers/{self.worker}/v1/inference", json=QUICK)
            if response.status_code == 200 and self.refusals:
                self.down_s = time.monotonic() - started_at
                return
            if response.status_code != 200:
                self.refusals.append(response)
                self._look()
            assert time.monotonic() - started_at < within_s, response.text
            time.sleep(0.1)

    def _look(self) -> None:
        base = f"/workers/{self.worker}"
        state = self._client.get(f"{base}/v1/ready").json() | self._client.get(f"{base}/info").json()
        everything = self._client.get("/v1/ready")
        health = self._client.get(f"{base}/health")
        [mine] = [worker for worker in everything.json()["workers"] if worker["id"] == self.worker]
        self.states += [] if state["ready"] or mine["ready"] else [state]
        if not mine["ready"]:
            assert mine["state"] == "loading", mine
            if mine["reason"] not in self.reasons:
                self.reasons.append(mine["reason"])
        if health.status_code == 503:
            assert int(health.headers["retry-after"]) > 0

    def check(self) -> None:
        """Everything said: try again."""
        for response in self.refusals:
            body = response.json()
            assert (response.status_code, body["retriable"]) == (503, True), body
            assert body["code"] in ("WORKER_LOADING", "WORKER_LOST"), body
            assert int(response.headers["retry-after"]) > 0
        codes = [response.json()["code"] for response in self.refusals]
        assert codes.count("WORKER_LOST") <= 1, codes  # a request that was sent as the process died
        assert {state["state"] for state in self.states} == {"loading"}
        assert {state["status"] for state in self.states} == {"starting"}
        assert all("progress_url" in state for state in self.states)


@contextmanager
def followed_load(url: str, worker: str) -> Iterator[list[str]]:
    """Follow the load once the worker is not ready; the frames that arrived, at the end of the block."""
    frames: list[str] = []

    def follow() -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            response = httpx.get(f"{url}/workers/{worker}/v1/loading/progress", timeout=90)
            if response.status_code == 200:
                frames.extend(frame for frame in response.text.split("\n\n") if not frame.startswith(":"))
                return
            assert response.json()["message"].endswith("there is no progress to follow; send it requests"), (
                response.text
            )
            time.sleep(0.02)

    thread = threading.Thread(target=follow)
    thread.start()
    yield frames
    thread.join()


def kill(served: Served) -> None:
    """SIGKILL, while idle."""
    replica_process("echo-reload").kill()


def break_engine(served: Served) -> None:
    """The engine dies, its replica lives."""
    infer(served, "echo-reload", {"prompt": "a", "fail": "unhealthy"})


ENDED, DEAD = "its process has ended", "its engine is dead"


@via("own", "throughput")
@pytest.mark.parametrize(("inject", "reason"), [(kill, ENDED), (break_engine, DEAD)])
def test_every_answer_is_to_try_again_until_the_replacement_serves(
    served: Served, frontend: Frontend, inject: Callable[[Served], None], reason: str
) -> None:
    until_it_serves(served, "echo-reload")
    heartbeats = len(served.hive.heartbeats("echo-reload"))
    observer = Observer(frontend.url, "echo-reload")
    with followed_load(frontend.url, "echo-reload") as frames:
        inject(served)
        observer.until_it_serves()
    observer.check()
    measured(reason, "a replacement serves after", observer.down_s, 30)
    assert observer.reasons[0] == f"{reason}; a replacement is starting"
    assert f"{reason}; a replacement is loading" in observer.reasons
    assert any(response.json().get("progress") for response in observer.refusals)
    assert frames[0] == 'data: {"stage":"starting"}'
    assert frames[-3:] == ['data: {"stage":"ready"}', "data: [DONE]", ""]
    assert "degraded" in [message["health_status"] for message in served.hive.heartbeats("echo-reload")[heartbeats:]]


async def test_a_request_that_runs_as_its_engine_breaks_is_lost_and_may_be_retried(served: Served) -> None:
    await asyncio.to_thread(until_it_serves, served, "echo-reload")
    stream = asyncio.create_task(stream_until(served, "echo-reload", SLOW))
    await asyncio.sleep(1)
    await asyncio.to_thread(break_engine, served)
    _, last = await stream
    assert isinstance(last, Error)
    assert (last.code, last.retriable) == ("WORKER_LOST", True)
    await asyncio.to_thread(until_it_serves, served, "echo-reload")


def test_a_replacement_that_fails_is_tried_again_until_the_model_is_back(served: Served) -> None:
    until_it_serves(served, "echo-reload")
    observer = Observer(served.url, "echo-reload")
    with followed_load(served.url, "echo-reload") as frames:
        MISSING.touch()
        kill(served)
        threading.Timer(12, MISSING.unlink).start()
        observer.until_it_serves()
    observer.check()
    assert "the model is missing; a replacement is starting" in observer.reasons
    assert frames[-3:] == ['data: {"stage":"ready"}', "data: [DONE]", ""]


def test_a_hub_that_dies_while_a_worker_is_replaced_comes_back_with_the_same_truth(served: Served) -> None:
    until_it_serves(served, "echo-reload")
    observer = Observer(served.url, "echo-reload")
    MISSING.touch()
    kill(served)
    eventually(lambda: not served.client.get(f"{served.base('echo-reload')}/v1/ready").json()["ready"])
    replica_process("hub").kill()
    threading.Timer(15, MISSING.unlink).start()
    for _ in range(20):
        assert infer(served, "echo-two", QUICK).status_code == 200
        time.sleep(0.2)
    observer.until_it_serves()
    observer.check()


def test_a_worker_that_loses_one_of_two_replicas_stays_ready(served: Served) -> None:
    eventually(lambda: len(replica_processes("echo-two")) == 2)
    heartbeats = len(served.hive.heartbeats("echo-two"))
    victim: psutil.Process = replica_processes("echo-two")[0]
    victim.kill()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        assert served.client.get(f"{served.base('echo-two')}/v1/ready").json()["ready"]
        response = infer(served, "echo-two", QUICK)
        assert response.status_code == 200 or response.json()["retriable"], response.text
        time.sleep(0.1)
    eventually(lambda: len(served.replicas("echo-two")) == 2, 60)
    assert "degraded" in [message["health_status"] for message in served.hive.heartbeats("echo-two")[heartbeats:]]


def test_a_process_that_is_killed_in_its_first_load_has_failed_for_good(served: Served) -> None:
    def ready() -> dict[str, Any]:
        return next(w for w in served.client.get("/v1/ready").json()["workers"] if w["id"] == "echo-never")

    eventually(lambda: "progress" in ready())
    with followed_load(served.url, "echo-never") as frames:
        killed_at = time.monotonic()
        replica_process("echo-never").kill()
        eventually(lambda: ready()["state"] == "error")
    measured("process killed in its first load", "the worker has failed", time.monotonic() - killed_at, 10)
    assert ready()["reason"].startswith("its process ended during the load")
    refused = infer(served, "echo-never", QUICK)
    assert (refused.status_code, refused.json()["code"], refused.json()["retriable"]) == (
        503,
        "WORKER_UNHEALTHY",
        False,
    )
    assert frames[-3].startswith('data: {"stage":"error","message":"its process ended during the load')
    assert replica_processes("echo-never") == []
