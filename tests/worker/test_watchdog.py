"""Progress of an engine, on a clock that the test sets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from rbee_serve.worker.watchdog import Watchdog


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_engine_with_work_and_no_step_hangs_until_it_makes_one() -> None:
    time = Time()
    steps = Watchdog(20, time)
    time.now = 100
    assert (steps.is_stalled(), steps.last_progress_age_s) == (False, None)  # it has nothing to do
    with steps.working():
        time.now += 19
        assert (steps.is_stalled(), steps.last_progress_age_s) == (False, 19)
        steps.step()
        assert steps.last_progress_age_s == 0
        time.now += 21
        assert steps.is_stalled()
    assert steps.is_stalled()  # its requests were given up, and still it has not moved
    steps.step()
    assert not steps.is_stalled()


def test_work_that_comes_after_a_pause_is_not_late() -> None:
    time = Time()
    steps = Watchdog(20, time)
    for _ in range(3):
        time.now += 1000
        with steps.working():
            assert steps.last_progress_age_s == 0


async def test_a_reader_that_is_slow_is_not_the_engine_s_fault() -> None:
    steps = Watchdog(20)

    async def outputs() -> AsyncIterator[int]:
        for number in range(3):
            assert steps.last_progress_age_s is not None
            await asyncio.sleep(0)
            yield number

    async with aclosing(steps.watch(outputs())) as read:
        async for _ in read:
            assert steps.last_progress_age_s is None
