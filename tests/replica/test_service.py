"""A worker behind admission and deadlines, without Ray: the echo backend in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from deployments.echo import SPEC, EchoBackend, EchoRequest
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import InferenceTimeout, InsufficientResources, InsufficientVram, WorkerError
from rbee_serve.events import End, Error, Event, Narration, Progress, Started, StopReason
from rbee_serve.grammar import StreamGrammar
from rbee_serve.replica.loading import load
from rbee_serve.replica.service import WorkerService
from rbee_serve.result import collect
from rbee_serve.worker.spec import Device, LoadContext
from rbee_serve.worker.watchdog import Watchdog


def service(on_change: Callable[[], None] = lambda: None, **settings: Any) -> WorkerService:
    worker = WorkerConfig(id="echo-0", type="echo", **settings)
    watchdog = Watchdog(worker.hang_timeout_on("cpu"))
    return WorkerService(worker, SPEC, EchoBackend(watchdog), watchdog, on_change)


async def read(worker: WorkerService, **fields: Any) -> list[Event[Any]]:
    grammar, events = StreamGrammar(), []
    async with aclosing(worker.events(EchoRequest(prompt="a b", **fields))) as stream:
        async for event in stream:
            grammar.accept(event)
            events.append(event)
    grammar.accept_done()
    return events


async def test_a_request_that_runs_at_once_gets_no_queue_position() -> None:
    events = await read(service())
    assert isinstance(events[-1], End)
    assert not any(isinstance(event, Progress) for event in events)


async def test_a_queued_request_gets_started_and_its_position() -> None:
    worker = service(max_ongoing_requests=1)
    tasks = [asyncio.create_task(read(worker, delay_s=0.1)) for _ in range(3)]
    _, second, third = await asyncio.gather(*tasks)
    assert isinstance(second[0], Started)
    assert second[1] == Progress(step=1, total=1, kind="queued")
    assert third[1] == Progress(step=2, total=2, kind="queued")
    assert isinstance(third[-1], End)
    assert (worker.admission.running, worker.admission.queued) == (0, 0)


async def test_a_full_worker_refuses_before_the_first_event() -> None:
    worker = service(max_ongoing_requests=1, max_queued_requests=0)
    running = asyncio.create_task(read(worker, delay_s=0.2))
    await asyncio.sleep(0.05)
    with pytest.raises(InsufficientResources):
        await read(worker)
    await running


async def test_a_deadline_in_mid_stream_is_an_error_event_and_cancels_the_backend() -> None:
    worker = service()
    events = await read(worker, repeat=1000, tokens_per_sec=50, timeout_s=0.2)
    assert isinstance(events[-1], Error)
    assert events[-1].code == "INFERENCE_TIMEOUT"
    assert (worker.backend.active, worker.admission.running) == (0, 0)  # type: ignore[attr-defined]


async def test_a_reader_cancelled_while_its_request_is_ended_stays_cancelled() -> None:
    worker = service()
    reading = asyncio.create_task(read(worker, delay_s=60))
    await asyncio.sleep(0.01)
    worker.give_up()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert (worker.backend.active, worker.admission.running) == (0, 0)  # type: ignore[attr-defined]


async def test_a_deadline_passed_while_the_reader_is_busy_ends_the_stream_at_the_next_read() -> None:
    worker = service()
    async with aclosing(worker.events(EchoRequest(prompt="a", repeat=1000, timeout_s=0.05))) as events:
        assert isinstance(await anext(events), Started)
        await asyncio.sleep(0.1)  # the reader must not be interrupted here
        assert [type(event) async for event in events] == [Error]


async def test_a_deadline_before_the_first_event_is_raised() -> None:
    worker = service()
    with pytest.raises(InferenceTimeout):
        await read(worker, delay_s=5, timeout_s=0.1)
    assert worker.admission.running == 0


async def test_a_deadline_includes_the_time_in_the_queue() -> None:
    worker = service(max_ongoing_requests=1)
    running = asyncio.create_task(read(worker, delay_s=0.5))
    await asyncio.sleep(0.05)
    events = await read(worker, timeout_s=0.1)
    assert [type(event).__name__ for event in events] == ["Started", "Progress", "Error"]
    assert worker.admission.queued == 0
    await running


async def test_a_request_can_only_shorten_the_timeout_of_the_worker() -> None:
    worker = service(timeout_s=0.1000004)
    events = await read(worker, repeat=1000, tokens_per_sec=50, timeout_s=100)
    assert isinstance(events[-1], Error)
    assert "0.1 s" in events[-1].message


async def test_giving_up_a_worker_ends_its_requests_as_lost() -> None:
    worker = service(max_ongoing_requests=2)
    hanging = [asyncio.create_task(read(worker, fail="hang", fail_at=1)) for _ in range(3)]
    silent = asyncio.create_task(read(worker, delay_s=60))
    await asyncio.sleep(0.05)
    worker.give_up()
    for events in await asyncio.gather(*hanging, silent):
        assert isinstance(events[-1], Error)
        assert events[-1].code == "WORKER_LOST"
    assert (worker.admission.running, worker.admission.queued) == (0, 0)


async def test_a_stalled_engine_is_unhealthy_and_a_busy_one_is_healthy() -> None:
    worker = service(hang_timeout_s=0.2)
    busy = asyncio.create_task(read(worker, repeat=100, tokens_per_sec=100))
    hanging = asyncio.create_task(read(worker, fail="hang", fail_at=1))
    await asyncio.sleep(0.5)
    assert worker.is_healthy()  # one request hangs but the engine makes progress
    assert worker.watchdog.last_progress_age_s == pytest.approx(0, abs=0.1)
    await busy
    await asyncio.sleep(0.3)
    assert not worker.is_healthy()
    worker.give_up()
    assert isinstance((await hanging)[-1], Error)
    assert not worker.is_healthy()


class AcceleratorError(RuntimeError):
    """As torch's is called."""


def torch_s_error(text: str) -> Exception:
    torch = pytest.importorskip("torch")
    error: Exception = torch.AcceleratorError(text)
    return error


@pytest.mark.parametrize("make", [torch_s_error, AcceleratorError, RuntimeError])
@pytest.mark.parametrize("events_before", [0, 1])
async def test_an_accelerator_that_is_lost_makes_the_worker_unhealthy_for_good(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[str], Exception], events_before: int
) -> None:
    changes: list[None] = []
    worker = service(lambda: changes.append(None))
    texts = iter(["CUDA error: invalid argument", "CUDA error: device-side assert triggered"])

    async def execute(self: EchoBackend, request: EchoRequest) -> AsyncGenerator[Event[Any], None]:
        for _ in range(events_before):
            yield Progress(step=1, total=2)
        raise make(next(texts))

    with monkeypatch.context() as patched:
        patched.setattr(EchoBackend, "execute", execute)
        assert await code_of(worker) == "CUDA_ERROR"
        assert worker.is_healthy()
        changes.clear()
        assert await code_of(worker) == "CUDA_ERROR"
    assert changes
    assert "accelerator has failed" in str(worker.fault())
    await read(worker)
    assert not worker.is_healthy()


async def code_of(worker: WorkerService) -> str:
    """The code of the error that a request ends with."""
    try:
        last = (await read(worker))[-1]
    except WorkerError as exc:
        return exc.code
    assert isinstance(last, Error)
    assert last.retriable
    return last.code


async def test_a_dead_engine_has_the_reason_of_its_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = service()
    monkeypatch.setattr(EchoBackend, "is_healthy", lambda self: False)
    assert worker.fault() == "its engine is dead"
    monkeypatch.setattr(EchoBackend, "why_unhealthy", lambda self: "its engine ran out of memory")
    assert worker.fault() == "its engine ran out of memory"


async def test_memory_that_runs_out_in_the_warm_up_is_an_error_of_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    async def execute(self: EchoBackend, request: EchoRequest) -> AsyncGenerator[Event[Any], None]:
        yield Progress(step=1, total=2)
        raise MemoryError

    context = LoadContext(WorkerConfig(id="echo-0", type="echo"), Device("cpu"), lambda progress: None)
    monkeypatch.setattr(EchoBackend, "execute", execute)
    with pytest.raises(InsufficientResources, match="while the model was loaded"):
        await load("tests:SPEC", SPEC, context)
    with pytest.raises(InsufficientVram, match="while the model was loaded"):
        await load("tests:SPEC", replace(SPEC, load=out_of_memory), context)


def out_of_memory(context: LoadContext) -> EchoBackend:
    raise RuntimeError("CUDA failed with error out of memory")


@pytest.mark.parametrize(
    ("configured", "accelerator", "expected"),
    [(None, "cuda", 60), (None, "cpu", 28), (None, "metal", 28), (7, "cuda", 7), (7, "cpu", 7)],
)
def test_an_engine_on_cuda_has_more_time_for_a_step_by_default(
    configured: float | None, accelerator: str, expected: float
) -> None:
    worker = WorkerConfig(id="echo-0", type="echo", hang_timeout_s=configured)
    assert worker.hang_timeout_on(accelerator) == expected


async def test_a_thousand_cancellations_at_any_moment_leak_nothing() -> None:
    worker = service(max_ongoing_requests=20, max_queued_requests=1000)

    async def cancel(after: int) -> None:
        task = asyncio.create_task(read(worker, repeat=50, tokens_per_sec=1000))
        await asyncio.sleep(after / 10_000)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    await asyncio.gather(*(cancel(n % 500) for n in range(1000)))
    assert (worker.admission.running, worker.admission.queued) == (0, 0)
    assert worker.backend.active == 0  # type: ignore[attr-defined]
    assert isinstance((await read(worker))[-1], End)


async def test_a_stop_iteration_of_the_load_or_of_the_encoding_of_a_result_is_raised() -> None:
    context = LoadContext(WorkerConfig(id="echo-0", type="echo"), Device("cpu"), lambda progress: None)
    spec = replace(SPEC, load=lambda context: next(iter([])), encode_result=lambda request, result: next(iter([])))
    with pytest.raises(RuntimeError, match="StopIteration in model code"):
        await asyncio.wait_for(load("tests:SPEC", spec, context), 5)

    worker = service()
    request = EchoRequest(prompt="a")
    result = await collect(worker.events(request), SPEC.outputs)
    worker.spec = spec
    with pytest.raises(RuntimeError, match="StopIteration in model code"):
        await asyncio.wait_for(worker.encode_result(request, result), 5)


async def test_one_result_has_the_notes_about_what_was_cut_or_changed() -> None:
    async def events(*actions: str) -> AsyncGenerator[Event[Any], None]:
        yield Started(job_id="j", model="m", started_at="now")
        for action in actions:
            yield Narration(actor="a", action=action, target="t", human=f"It is a {action}")
        yield End(tokens_out=0, decode_time_ms=1, stop_reason=StopReason.COMPLETE)

    actions = ("prefill", "note", "adjust", "truncate", "safety", "complete")
    result = await collect(events(*actions), SPEC.outputs)
    assert result.notes == ("It is a note", "It is a adjust", "It is a truncate", "It is a safety")
    assert json.loads(result.to_json())["notes"] == list(result.notes)
    assert "notes" not in json.loads((await collect(events("prefill"), SPEC.outputs)).to_json())
