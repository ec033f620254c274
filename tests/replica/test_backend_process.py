"""A backend in a process of its own: its events, errors, progress and backpressure, and the death of either side."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from deployments.echo import EchoRequest
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError, CudaError, InsufficientVram, InternalError, WorkerLost
from rbee_serve.events import End, Event, Output, Progress
from rbee_serve.gpu_budget import CONTEXT_BYTES
from rbee_serve.replica import backend_process
from rbee_serve.replica.backend_messages import WINDOW
from rbee_serve.replica.backend_process import BackendProcess
from rbee_serve.request import InferenceRequest
from rbee_serve.state import LoadProgress, invalid_field
from rbee_serve.worker.registry import load_spec
from rbee_serve.worker.spec import Device, LoadContext
from rbee_serve.worker.watchdog import Watchdog
from tests.gpus.fake_nvml import GIB

ECHO = "deployments.echo:SPEC"
RECORDING = "tests.replica.recording_worker:SPEC"


def ignored(progress: LoadProgress) -> None:
    """No test reads this progress."""


@asynccontextmanager
async def started(
    spec_path: str,
    report: Callable[[LoadProgress], None] = ignored,
    steps: Watchdog | None = None,
    accelerator: str = "cpu",
    **engine: Any,
) -> AsyncGenerator[BackendProcess, None]:
    worker = WorkerConfig(id="own-0", type=spec_path, engine=engine)
    context = LoadContext(worker, Device(accelerator), report, steps or Watchdog(20))
    backend = await BackendProcess.start(spec_path, context)
    try:
        yield backend
    finally:
        await asyncio.to_thread(backend.close)


async def events_of(backend: Any, request: InferenceRequest) -> list[Event[Any]]:
    return [event async for event in backend.execute(request)]


def untimed(events: list[Event[Any]]) -> list[Event[Any]]:
    return [event for event in events if isinstance(event, Output | Progress)]


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_it_yields_the_events_of_its_backend() -> None:
    here = load_spec(ECHO).load(LoadContext(WorkerConfig(id="e", type="echo"), Device("cpu"), ignored))
    request = EchoRequest(prompt="a b c", repeat=WINDOW, progress=True)
    async with started(ECHO) as echo:
        events = await events_of(echo, request)
    assert untimed(events) == untimed(await events_of(here, request))
    assert isinstance(events[-1], End)
    assert len(untimed(events)) == 6 * WINDOW


async def test_concurrent_streams_do_not_mix() -> None:
    requests = [EchoRequest(prompt=f"word{n}", repeat=20, tokens_per_sec=500) for n in range(20)]
    async with started(ECHO) as echo:
        streams = await asyncio.gather(*(events_of(echo, request) for request in requests))
    for n, events in enumerate(streams):
        assert {event.value.t.strip() for event in events if isinstance(event, Output)} == {f"word{n}"}


async def test_an_exception_of_the_backend_is_raised_here() -> None:
    async with started(ECHO) as echo:
        with pytest.raises(InsufficientVram):
            await events_of(echo, EchoRequest(prompt="a", fail="oom"))
        assert untimed(await events_of(echo, EchoRequest(prompt="a")))


async def test_a_cancellation_from_elsewhere_ends_the_request_with_an_error() -> None:
    async with started(RECORDING, cancelled_elsewhere=True) as backend, asyncio.timeout(10):
        with pytest.raises(InternalError):
            await events_of(backend, InferenceRequest())


async def test_an_exception_of_the_load_is_raised_with_its_message() -> None:
    with pytest.raises(InternalError, match="no weights"):
        async with started(ECHO, load_error="this model has no weights"):
            pass


async def test_an_exit_during_the_load_is_reported_with_its_status() -> None:
    with pytest.raises(ConfigurationError, match="ended during the load: exit status 7"):
        async with started(RECORDING, exit=7):
            pass


async def test_an_exit_during_the_load_is_reported_with_the_last_line_of_the_process(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ConfigurationError, match=r"load: exit status 7 \(no driver was found\)"):
        async with started(RECORDING, exit=7, writes="loading\nno driver was found"):
            pass
    assert "no driver was found" in capfd.readouterr().err
    with pytest.raises(InsufficientVram, match=r"what\(\): CUDA failed with error out of memory"):
        async with started(RECORDING, exit=7, writes="  what():  CUDA failed with error out of memory"):
            pass


async def test_memory_that_runs_out_during_the_load_is_reported_as_such() -> None:
    with pytest.raises(InsufficientVram, match=r"while the model was loaded; .* \(OutOfMemoryError: 2 GB\)"):
        async with started(RECORDING, load_raises="2 GB"):
            pass


async def test_a_process_that_cannot_use_its_accelerator_any_more_exits() -> None:
    async with started(RECORDING, raises="CUDA error: invalid argument") as backend:
        with pytest.raises(CudaError):
            await events_of(backend, InferenceRequest())
        await asyncio.sleep(1.5)
        assert backend.is_healthy()
    async with started(RECORDING, raises="CUDA error: device-side assert triggered") as backend:
        with pytest.raises(CudaError):
            await events_of(backend, InferenceRequest())
        await until(lambda: not backend.is_healthy())
        await until(lambda: "accelerator" in backend.why_unhealthy())


async def test_an_exception_of_the_load_that_cannot_be_pickled_is_reported_by_name() -> None:
    with pytest.raises(RuntimeError, match="ForeignError: weights:7"):
        async with started(RECORDING, broken="weights"):
            pass


async def test_a_load_timeout_ends_the_process() -> None:
    before = set(psutil.Process().children())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1), started(RECORDING, load_s=60):
            pass
    assert set(psutil.Process().children()) <= before


async def test_progress_of_the_load_is_reported() -> None:
    reports: list[LoadProgress] = []
    async with started(RECORDING, reports.append):
        assert reports == [LoadProgress(stage="loading_to_vram", bytes_done=1, bytes_total=2)]


async def test_progress_with_a_value_of_a_wrong_type_is_reported_and_the_process_goes_on() -> None:
    reports: list[LoadProgress] = []
    async with started(RECORDING, reports.append, bytes_total=1.5) as backend:
        assert backend.is_healthy()
    assert [invalid_field(report) for report in reports] == ["bytes_total (Expected `int | null`, got `float`)"]


async def test_closing_the_events_cancels_the_request_in_the_process(tmp_path: Path) -> None:
    async with started(RECORDING, folder=str(tmp_path)) as backend:
        async with aclosing(backend.execute(InferenceRequest())) as events:
            await anext(events)
        await until((tmp_path / "cancelled").exists)


async def test_the_backend_is_at_most_a_window_ahead_of_its_reader(tmp_path: Path) -> None:
    async with (
        started(RECORDING, folder=str(tmp_path)) as backend,
        aclosing(backend.execute(InferenceRequest())) as events,
    ):
        for _ in range(WINDOW):
            await anext(events)
        await asyncio.sleep(0.5)
        assert int((tmp_path / "step").read_text()) <= 2 * WINDOW + 2


async def test_the_watchdog_is_shared_with_the_process(tmp_path: Path) -> None:
    steps = Watchdog(0.2)
    async with started(RECORDING, steps=steps, folder=str(tmp_path), wait_s=0.6) as backend:
        assert steps.last_progress_age_s is None
        events = backend.execute(InferenceRequest())
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.4)
        assert steps.last_progress_age_s is not None
        assert steps.is_stalled()
        await first
        assert not steps.is_stalled()
        await events.aclose()
        await until(lambda: steps.last_progress_age_s is None)


async def test_where_the_driver_is_silent_its_memory_on_a_gpu_is_what_torch_has_reserved_in_the_process() -> None:
    async with started(RECORDING, accelerator="cuda", gpu_bytes=5 * GIB) as backend:
        await until(lambda: backend._engine_bytes > 0)
        assert await asyncio.to_thread(backend.memory_bytes) == 5 * GIB + CONTEXT_BYTES
        assert backend.memory_source() == "engine"


async def test_the_death_of_the_process_ends_its_requests_as_lost_and_is_unhealthy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with started(ECHO) as backend:
        assert backend.is_healthy()
        assert await asyncio.to_thread(backend.memory_bytes) > 20e6
        assert backend.memory_source() == "ram"
        waiting = [asyncio.create_task(events_of(backend, EchoRequest(prompt="a", delay_s=60))) for _ in range(3)]
        await asyncio.sleep(0.2)
        os.kill(backend._process.pid, signal.SIGKILL)
        for task in waiting:
            with pytest.raises(WorkerLost, match="has ended"):
                await task
        assert not backend.is_healthy()
        with pytest.raises(WorkerLost):
            await events_of(backend, EchoRequest(prompt="a"))
        await until(lambda: "the engine's process has ended: SIGKILL" in caplog.text)
        await until(lambda: backend.why_unhealthy() == "its engine's process has ended: SIGKILL")


async def test_a_lost_connection_ends_the_requests_before_the_process_is_killed() -> None:
    async with started(ECHO) as backend:
        waiting = asyncio.create_task(events_of(backend, EchoRequest(prompt="a", delay_s=60)))
        await asyncio.sleep(0.2)
        os.kill(backend._process.pid, signal.SIGSTOP)
        backend._connection.abort("for the test")
        with pytest.raises(WorkerLost):
            await waiting
        assert backend._process.poll() is None
        assert not backend.is_healthy()
        await until(lambda: backend._process.poll() is not None)


async def test_an_unhealthy_backend_ends_its_process() -> None:
    async with started(ECHO) as backend:
        with pytest.raises(WorkerLost):
            await events_of(backend, EchoRequest(prompt="a", fail="unhealthy"))
        await until(lambda: not backend.is_healthy())


async def test_close_waits_for_the_backend_to_close(tmp_path: Path) -> None:
    async with started(RECORDING, folder=str(tmp_path), close_s=1) as backend:
        await asyncio.to_thread(backend.close)
        assert (tmp_path / "closed").exists()
        assert not backend.is_healthy()


async def test_a_process_that_does_not_close_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_process, "CLOSE_TIMEOUT_S", 0.5)
    async with started(RECORDING, folder=str(tmp_path), close_s=60) as backend:
        await asyncio.to_thread(backend.close)
        assert not backend.is_healthy()


PARENT = """
import asyncio, sys
from rbee_serve.replica.backend_process import BackendProcess
from rbee_serve.config import WorkerConfig
from rbee_serve.request import InferenceRequest
from rbee_serve.worker.spec import Device, LoadContext

async def main():
    engine = {"folder": sys.argv[1], "block": sys.argv[2] == "block"}
    worker = WorkerConfig(id="own-0", type="recording", engine=engine)
    context = LoadContext(worker, Device("cpu"), lambda progress: None)
    backend = await BackendProcess.start("tests.replica.recording_worker:SPEC", context)
    print(backend._process.pid, flush=True)
    async for event in backend.execute(InferenceRequest()):
        pass

asyncio.run(main())
"""


@pytest.mark.parametrize(("mode", "file"), [("run", "step"), ("block", "blocked")])
def test_the_process_ends_with_its_parent_even_if_its_event_loop_is_blocked(
    tmp_path: Path, mode: str, file: str
) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), mode], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    process = psutil.Process(int(parent.stdout.readline()))
    try:
        asyncio.run(until((tmp_path / file).exists))
        parent.kill()
        parent.wait()
        asyncio.run(until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE))
        assert (tmp_path / "closed").exists() == (mode == "run")
    finally:
        parent.stdout.close()
        with suppress(psutil.NoSuchProcess):
            process.kill()


def test_a_worker_type_with_roles_cannot_have_a_process_of_its_own() -> None:
    with pytest.raises(ValueError, match="roles cannot have own_process"):
        replace(load_spec(RECORDING), own_process=True, roles={"audio": "audio/generate"})
