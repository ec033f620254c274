"""A backend in a process of its own: what it yields, raises, reports and owes, and what happens when a side dies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from deployments.echo import EchoRequest
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import InsufficientVram, InternalError, WorkerLost, WorkerUnhealthy
from rbee_serve.events import End, Event, Output, Progress
from rbee_serve.replica.backend_process import WINDOW, BackendProcess
from rbee_serve.request import InferenceRequest
from rbee_serve.state import LoadProgress
from rbee_serve.worker.registry import load_spec
from rbee_serve.worker.spec import Device, LoadContext
from rbee_serve.worker.watchdog import Watchdog

ECHO = "deployments.echo:SPEC"
NOTES = "tests.replica.noting_worker:SPEC"


def started(spec_path: str, report: Callable[[LoadProgress], None] = lambda _: None, **engine: Any) -> BackendProcess:
    worker = WorkerConfig(id="own-0", type=spec_path, engine=engine)
    return BackendProcess(spec_path, LoadContext(worker, Device("cpu"), report, Watchdog(20)))


@pytest.fixture(scope="module")
def echo() -> Iterator[BackendProcess]:
    backend = started(ECHO)
    yield backend
    backend.close()


async def events_of(backend: Any, request: InferenceRequest) -> list[Event[Any]]:
    return [event async for event in backend.execute(request)]


def untimed(events: list[Event[Any]]) -> list[Event[Any]]:
    return [event for event in events if isinstance(event, Output | Progress)]


def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


async def test_it_yields_what_the_backend_does(echo: BackendProcess) -> None:
    here = load_spec(ECHO).load(LoadContext(WorkerConfig(id="e", type="echo"), Device("cpu"), lambda _: None))
    request = EchoRequest(prompt="a b c", repeat=WINDOW, progress=True)
    events = await events_of(echo, request)
    assert untimed(events) == untimed(await events_of(here, request))
    assert isinstance(events[-1], End)
    assert len(untimed(events)) == 6 * WINDOW


async def test_many_at_once_do_not_mix(echo: BackendProcess) -> None:
    requests = [EchoRequest(prompt=f"word{n}", repeat=20, tokens_per_sec=500) for n in range(20)]
    answers = await asyncio.gather(*(events_of(echo, request) for request in requests))
    for n, answer in enumerate(answers):
        assert {event.value.t.strip() for event in answer if isinstance(event, Output)} == {f"word{n}"}


async def test_what_it_raises_is_raised_here(echo: BackendProcess) -> None:
    with pytest.raises(InsufficientVram):
        await events_of(echo, EchoRequest(prompt="a", fail="oom"))
    assert untimed(await events_of(echo, EchoRequest(prompt="a")))


def test_a_load_that_fails_is_raised_with_its_sentence() -> None:
    with pytest.raises(InternalError, match="no weights"):
        started(ECHO, load_error="this model has no weights")


def test_a_process_that_ends_while_it_loads_is_told() -> None:
    with pytest.raises(RuntimeError, match="ended while it loaded the model: exit status 7"):
        started(NOTES, exit=7)


def test_a_load_that_fails_with_what_cannot_be_sent_is_told_by_name() -> None:
    with pytest.raises(RuntimeError, match="ForeignError: weights:7"):
        started(NOTES, broken="weights")


def test_its_progress_is_reported() -> None:
    told: list[LoadProgress] = []
    started(NOTES, told.append).close()
    assert told == [LoadProgress(stage="loading_to_vram", bytes_done=1, bytes_total=2)]


async def test_a_reader_that_leaves_closes_the_work_there(tmp_path: Path) -> None:
    backend = started(NOTES, notes=str(tmp_path))
    async with aclosing(backend.execute(InferenceRequest())) as events:
        await anext(events)
    until((tmp_path / "closed").exists)
    backend.close()


async def test_it_is_a_window_ahead_of_its_reader_at_most(tmp_path: Path) -> None:
    backend = started(NOTES, notes=str(tmp_path))
    async with aclosing(backend.execute(InferenceRequest())) as events:
        for _ in range(WINDOW):
            await anext(events)
        await asyncio.sleep(0.5)
        assert int((tmp_path / "made").read_text()) <= 2 * WINDOW + 2
    backend.close()


async def test_steps_there_are_seen_here(tmp_path: Path) -> None:
    steps = Watchdog(0.2)
    worker = WorkerConfig(id="own-0", type=NOTES, engine={"notes": str(tmp_path), "wait_s": 0.6})
    backend = BackendProcess(NOTES, LoadContext(worker, Device("cpu"), lambda _: None, steps))
    assert steps.last_progress_age_s is None
    events = backend.execute(InferenceRequest())
    first = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0.4)
    assert steps.last_progress_age_s is not None
    assert steps.is_stalled()
    await first
    assert not steps.is_stalled()
    await events.aclose()
    until(lambda: steps.last_progress_age_s is None)
    backend.close()


async def test_when_its_process_dies_all_that_wait_are_told_and_it_is_not_healthy() -> None:
    backend = started(ECHO)
    assert backend.is_healthy()
    assert backend.memory_bytes() > 20e6
    waiting = [asyncio.create_task(events_of(backend, EchoRequest(prompt="a", delay_s=60))) for _ in range(3)]
    await asyncio.sleep(0.2)
    os.kill(backend._process.pid, signal.SIGKILL)
    for task in waiting:
        with pytest.raises(WorkerLost, match="ended \\(SIGKILL\\)"):
            await task
    assert not backend.is_healthy()
    with pytest.raises(WorkerLost):
        await events_of(backend, EchoRequest(prompt="a"))
    backend.close()


async def test_a_backend_that_is_not_healthy_ends_its_process() -> None:
    backend = started(ECHO)
    with pytest.raises(WorkerUnhealthy):
        await events_of(backend, EchoRequest(prompt="a", fail="unhealthy"))
    until(lambda: not backend.is_healthy())
    backend.close()


OWNER = """
import sys
from rbee_serve.replica.backend_process import BackendProcess
from rbee_serve.config import WorkerConfig
from rbee_serve.worker.spec import Device, LoadContext
worker = WorkerConfig(id="own-0", type="echo")
print(BackendProcess("deployments.echo:SPEC", LoadContext(worker, Device("cpu"), print))._process.pid, flush=True)
sys.stdin.read()
"""


def test_it_ends_with_its_owner() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert psutil.pid_exists(pid)
    owner.kill()
    owner.communicate()
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_a_type_that_calls_others_cannot_have_a_process_of_its_own() -> None:
    with pytest.raises(ValueError, match="roles cannot have own_process"):
        replace(load_spec(NOTES), own_process=True, roles={"audio": "audio/generate"})
