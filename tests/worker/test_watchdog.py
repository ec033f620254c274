"""The progress of an engine, on a clock that the test sets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from rbee_serve.worker.watchdog import Watchdog


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_engine_with_work_and_without_a_step_is_stalled_until_its_next_step() -> None:
    time = Time()
    watchdog = Watchdog(20, time)
    time.now = 100
    assert (watchdog.is_stalled(), watchdog.last_progress_age_s) == (False, None)  # it has no work
    with watchdog.working():
        time.now += 19
        assert (watchdog.is_stalled(), watchdog.last_progress_age_s) == (False, 19)
        watchdog.step()
        assert watchdog.last_progress_age_s == 0
        time.now += 21
        assert watchdog.is_stalled()
    assert watchdog.is_stalled()  # its requests were cancelled, and it made no step
    watchdog.step()
    assert not watchdog.is_stalled()


def test_an_engine_without_work_for_long_is_not_stalled_by_new_work() -> None:
    time = Time()
    watchdog = Watchdog(20, time)
    for _ in range(3):
        time.now += 1000
        with watchdog.working():
            assert watchdog.last_progress_age_s == 0


async def test_a_slow_reader_does_not_stall_the_engine() -> None:
    watchdog = Watchdog(20)

    async def outputs() -> AsyncIterator[int]:
        for number in range(3):
            assert watchdog.last_progress_age_s is not None
            await asyncio.sleep(0)
            yield number

    async with aclosing(watchdog.watch(outputs())) as read:
        async for _ in read:
            assert watchdog.last_progress_age_s is None
