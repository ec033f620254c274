"""Blocking generators in the engine's thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from contextlib import aclosing
from functools import partial

import pytest

from rbee_serve.worker.engine_thread import PREFETCH, EngineThread, Sink
from rbee_serve.worker.watchdog import Watchdog


class Work:
    """Counts up; tells what it has made, in which threads, and when it was closed."""

    def __init__(self, length: int = 1_000_000, fail_at: int = -1) -> None:
        self.made: list[int] = []
        self.threads: set[int] = set()
        self.closed = threading.Event()
        self._length = length
        self._fail_at = fail_at

    def items(self) -> Generator[int, None, None]:
        try:
            for number in range(self._length):
                self.threads.add(threading.get_ident())
                if number == self._fail_at:
                    raise KeyError(number)
                self.made.append(number)
                yield number
        finally:
            self.closed.set()


@pytest.fixture
def engine() -> EngineThread:
    return EngineThread(Watchdog(20))


async def test_items_come_in_order_from_one_other_thread(engine: EngineThread) -> None:
    works = [Work(50), Work(50)]

    async def read(work: Work) -> list[int]:
        return [item async for item in engine.iterate(work.items())]

    assert await asyncio.gather(*map(read, works)) == [list(range(50))] * 2
    assert works[0].threads == works[1].threads
    assert threading.get_ident() not in works[0].threads
    engine.close()


async def test_a_short_work_does_not_wait_for_a_long_one(engine: EngineThread) -> None:
    long = Work()
    async with aclosing(engine.iterate(long.items())) as items:
        await anext(items)
        assert [item async for item in engine.iterate(Work(3).items())] == [0, 1, 2]
    assert len(long.made) == 1 + PREFETCH


async def test_a_reader_that_leaves_closes_the_work_after_the_item_that_is_made(engine: EngineThread) -> None:
    work = Work()
    async with aclosing(engine.iterate(work.items())) as items:
        assert [await anext(items) for _ in range(3)] == [0, 1, 2]
    assert await asyncio.to_thread(work.closed.wait, 1)
    assert len(work.made) <= 3 + PREFETCH


async def test_a_reader_that_is_cancelled_while_it_waits_closes_the_work(engine: EngineThread) -> None:
    blocked, entered, closed = threading.Event(), threading.Event(), threading.Event()

    def work() -> Generator[int, None, None]:
        try:
            entered.set()
            blocked.wait(5)
            yield 1
        finally:
            closed.set()

    async def read() -> None:
        async for _ in engine.iterate(work()):
            pass

    reading = asyncio.create_task(read())
    await asyncio.to_thread(entered.wait, 1)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    blocked.set()
    assert await asyncio.to_thread(closed.wait, 1)


async def test_a_failure_is_raised_after_what_came_before_it(engine: EngineThread) -> None:
    seen = []
    with pytest.raises(KeyError):  # noqa: PT012
        async for item in engine.iterate(Work(fail_at=2).items()):
            seen.append(item)  # noqa: PERF401
    assert seen == [0, 1]


async def test_a_failure_that_nobody_waits_for_is_forgotten(engine: EngineThread) -> None:
    async with aclosing(engine.iterate(Work(fail_at=1).items())) as items:
        assert await anext(items) == 0
        await asyncio.sleep(0.05)


async def test_each_item_is_a_step_and_none_is_expected_of_an_engine_that_nobody_waits_for() -> None:
    steps = Watchdog(0.2)
    engine = EngineThread(steps)
    blocked = threading.Event()

    def work() -> Generator[int, None, None]:
        yield 1
        blocked.wait(5)
        yield 2

    async with aclosing(engine.iterate(work())) as items:
        await anext(items)
        await asyncio.sleep(0.4)
        assert not steps.is_stalled()
        waiting = asyncio.ensure_future(anext(items))
        await asyncio.sleep(0.4)
        assert steps.is_stalled()
        blocked.set()
        assert await waiting == 2
        assert not steps.is_stalled()


async def test_work_that_calls_back_is_read_in_order_and_follows_what_came_before_it(engine: EngineThread) -> None:
    begun: list[int] = []

    def work(number: int, sink: Sink[int]) -> None:
        begun.append(number)
        for item in range(3):
            sink.put(10 * number + item)

    async def read(number: int) -> list[int]:
        return [item async for item in engine.run_callback(partial(work, number))]

    assert await asyncio.gather(*map(read, [1, 2])) == [[10, 11, 12], [20, 21, 22]]
    assert begun == [1, 2]
    engine.close()


async def test_a_reader_that_leaves_ends_work_that_calls_back_at_its_next_step(engine: EngineThread) -> None:
    left, ended = threading.Event(), threading.Event()

    def work(sink: Sink[int]) -> None:
        sink.put(1)
        left.wait(5)
        try:
            sink.step()
        except InterruptedError:
            ended.set()
            raise

    async with aclosing(engine.run_callback(work)) as items:
        assert await anext(items) == 1
    left.set()
    assert await asyncio.to_thread(ended.wait, 1)
    assert [item async for item in engine.iterate(Work(2).items())] == [0, 1]


async def test_work_that_calls_back_and_waits_is_not_begun_when_its_reader_has_left(engine: EngineThread) -> None:
    free, begun = threading.Event(), threading.Event()

    def wait(sink: Sink[int]) -> None:
        free.wait(5)
        sink.put(1)

    def begin(sink: Sink[int]) -> None:
        begun.set()

    first, second = [asyncio.ensure_future(anext(engine.run_callback(work))) for work in (wait, begin)]
    await asyncio.sleep(0.05)
    second.cancel()
    await asyncio.wait([second])
    free.set()
    assert await first == 1
    assert [item async for item in engine.iterate(Work(1).items())] == [0]
    assert not begun.is_set()


async def test_a_failure_of_work_that_calls_back_is_raised_after_what_came_before_it(engine: EngineThread) -> None:
    def work(sink: Sink[int]) -> None:
        sink.put(1)
        raise KeyError

    items = engine.run_callback(work)
    assert await anext(items) == 1
    with pytest.raises(KeyError):
        await anext(items)
    async with aclosing(engine.run_callback(work)) as items:
        await anext(items)
        await asyncio.sleep(0.05)  # what nobody waits for is forgotten
