"""The part of the contract about a disconnect in the middle of a long request."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import psutil

from rbee_serve.events import Error, Event
from rbee_serve.replica.service import WorkerService
from rbee_serve.testing.failure import fail

MAX_BLOCK_S = 1.0
"""The longest that a backend may block the event loop; every other request of the replica waits meanwhile."""
PERIOD_S = 0.01
"""Between two measurements of pauses."""
WINDOW_S = 0.3
"""The time over which CPU use is measured."""
IDLE_CPU = 0.05
"""CPU cores below which the process counts as idle: a model that computes uses one or more, on a busy machine less."""


async def check_cancellation(service: WorkerService, cancel_after_s: float, idle_within_s: float) -> None:
    """Cancels the long request `cancel_after_s` after its start, as a disconnect does. The backend must be idle
    `idle_within_s` later: no request in the engine, no pending step, no CPU use."""
    spec = service.spec
    assert spec.long_request is not None
    async with _measured_blocks() as blocks:
        await asyncio.sleep(PERIOD_S)
        began = time.monotonic()
        reading = asyncio.create_task(_read(service.events(spec.long_request())))
        await asyncio.wait([reading], timeout=cancel_after_s)
        seconds = time.monotonic() - began
    if blocks[0] > MAX_BLOCK_S:
        fail(
            spec,
            f"execute blocked the event loop for {blocks[0]:.1f} s; run the model in a thread or a process, such as "
            "EngineThread, Batcher or BlockingBackend",
        )
    if reading.done():
        if error := reading.exception():
            fail(spec, f"the long request failed: {error}", error)
        fail(
            spec,
            f"long_request() was done after {seconds:.2f} s, too early to cancel it in the middle; give one that "
            "takes seconds",
        )
    reading.cancel()
    cancelled_at = time.monotonic()
    await asyncio.wait([reading], timeout=idle_within_s)
    if not reading.done():
        fail(spec, f"execute did not return within {idle_within_s:g} s after a disconnect; do not wait in `finally`")
    if not reading.cancelled() and (error := reading.exception()):
        fail(spec, f"execute raised {type(error).__name__} after a disconnect; clean up in `finally`", error)
    while busy := await _busy(service):
        if time.monotonic() - cancelled_at > idle_within_s:
            fail(
                spec,
                f"the engine was not idle {idle_within_s:g} s after a disconnect: {busy}; stop the work when the "
                "iterator of execute is closed",
            )


async def _read(events: AsyncGenerator[Event[Any], None]) -> None:
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Error):
                raise event.to_exception()


async def _busy(service: WorkerService) -> str | None:
    """Why the engine is not idle; takes `WINDOW_S`."""
    used = await asyncio.to_thread(_cpu_use)
    if count := service.backend.engine_requests():
        return f"engine_requests() is {count}"
    if service.watchdog.last_progress_age_s is not None:
        return "the watchdog still expects a step"
    return f"the process uses {used:.1f} CPU cores" if used > IDLE_CPU else None


def _cpu_use() -> float:
    """CPU cores that this process and its descendants use, without this thread, measured over `WINDOW_S`."""
    own, began = time.thread_time(), time.monotonic()
    before = _cpu_seconds()
    time.sleep(WINDOW_S)
    used = _cpu_seconds() - before - (time.thread_time() - own)
    return used / (time.monotonic() - began)


def _cpu_seconds() -> float:
    total = time.process_time()
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


@asynccontextmanager
async def _measured_blocks() -> AsyncIterator[list[float]]:
    """While the block runs, the list holds the longest pause of the event loop beyond those of the whole process, in
    seconds: on a machine with much else to do, every thread pauses."""
    blocks = [0.0]
    loop_pauses, thread_pauses = [0.0], [0.0]
    done = threading.Event()

    def measure_thread() -> None:
        while not done.is_set():
            began = time.monotonic()
            time.sleep(PERIOD_S)
            thread_pauses.append(time.monotonic() - began - PERIOD_S)

    async def measure_loop() -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(PERIOD_S)
            loop_pauses.append(time.monotonic() - began - PERIOD_S)

    thread = threading.Thread(target=measure_thread, daemon=True)
    thread.start()
    measuring = asyncio.create_task(measure_loop())
    try:
        yield blocks
        await asyncio.sleep(2 * PERIOD_S)  # a pause that has just ended is measured too
    finally:
        done.set()
        measuring.cancel()
        blocks[0] = max(loop_pauses) - max(thread_pauses)
