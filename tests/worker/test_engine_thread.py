"""Blocking generators and functions with a callback in the thread of an engine."""

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
    """Counts up; records its items, its threads, and when it was closed."""

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


async def test_items_arrive_in_order_from_one_other_thread(engine: EngineThread) -> None:
    works = [Work(50), Work(50)]

    async def read(work: Work) -> list[int]:
        return [item async for item in engine.iterate(work.items())]

    assert await asyncio.gather(*map(read, works)) == [list(range(50))] * 2
    assert works[0].threads == works[1].threads
    assert threading.get_ident() not in works[0].threads
    engine.close()


async def test_a_short_generator_does_not_wait_for_a_long_one(engine: EngineThread) -> None:
    long = Work()
    async with aclosing(engine.iterate(long.items())) as items:
        await anext(items)
        assert [item async for item in engine.iterate(Work(3).items())] == [0, 1, 2]
    assert len(long.made) == 1 + PREFETCH


async def test_closing_the_reader_closes_the_generator_after_the_current_item(engine: EngineThread) -> None:
    work = Work()
    async with aclosing(engine.iterate(work.items())) as items:
        assert [await anext(items) for _ in range(3)] == [0, 1, 2]
    assert await asyncio.to_thread(work.closed.wait, 1)
    assert len(work.made) <= 3 + PREFETCH


async def test_cancelling_a_waiting_reader_closes_the_generator(engine: EngineThread) -> None:
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


async def test_an_error_is_raised_after_the_items_before_it(engine: EngineThread) -> None:
    seen = []
    with pytest.raises(KeyError):  # noqa: PT012
        async for item in engine.iterate(Work(fail_at=2).items()):
            seen.append(item)  # noqa: PERF401
    assert seen == [0, 1]


async def test_an_error_without_a_reader_is_dropped(engine: EngineThread) -> None:
    async with aclosing(engine.iterate(Work(fail_at=1).items())) as items:
        assert await anext(items) == 0
        await asyncio.sleep(0.05)


async def test_each_item_is_a_step_and_none_is_expected_without_a_waiting_reader() -> None:
    watchdog = Watchdog(0.2)
    engine = EngineThread(watchdog)
    blocked = threading.Event()

    def work() -> Generator[int, None, None]:
        yield 1
        blocked.wait(5)
        yield 2

    async with aclosing(engine.iterate(work())) as items:
        await anext(items)
        await asyncio.sleep(0.4)
        assert not watchdog.is_stalled()
        waiting = asyncio.ensure_future(anext(items))
        await asyncio.sleep(0.4)
        assert watchdog.is_stalled()
        blocked.set()
        assert await waiting == 2
        assert not watchdog.is_stalled()


async def test_functions_with_a_callback_run_one_after_another_and_deliver_in_order(engine: EngineThread) -> None:
    started: list[int] = []

    def work(number: int, sink: Sink[int]) -> None:
        started.append(number)
        for item in range(3):
            sink.put(10 * number + item)

    async def read(number: int) -> list[int]:
        return [item async for item in engine.run_callback(partial(work, number))]

    assert await asyncio.gather(*map(read, [1, 2])) == [[10, 11, 12], [20, 21, 22]]
    assert started == [1, 2]
    engine.close()


async def test_closing_the_reader_ends_a_function_with_a_callback_at_its_next_step(engine: EngineThread) -> None:
    closed, ended = threading.Event(), threading.Event()

    def work(sink: Sink[int]) -> None:
        sink.put(1)
        closed.wait(5)
        try:
            sink.step()
        except InterruptedError:
            ended.set()
            raise

    async with aclosing(engine.run_callback(work)) as items:
        assert await anext(items) == 1
    closed.set()
    assert await asyncio.to_thread(ended.wait, 1)
    assert [item async for item in engine.iterate(Work(2).items())] == [0, 1]


async def test_a_waiting_function_is_not_started_after_its_reader_was_closed(engine: EngineThread) -> None:
    free, started = threading.Event(), threading.Event()

    def wait(sink: Sink[int]) -> None:
        free.wait(5)
        sink.put(1)

    def begin(sink: Sink[int]) -> None:
        started.set()

    first, second = [asyncio.ensure_future(anext(engine.run_callback(work))) for work in (wait, begin)]
    await asyncio.sleep(0.05)
    second.cancel()
    await asyncio.wait([second])
    free.set()
    assert await first == 1
    assert [item async for item in engine.iterate(Work(1).items())] == [0]
    assert not started.is_set()


async def test_an_error_of_a_function_with_a_callback_is_raised_after_its_items(engine: EngineThread) -> None:
    def work(sink: Sink[int]) -> None:
        sink.put(1)
        raise KeyError

    items = engine.run_callback(work)
    assert await anext(items) == 1
    with pytest.raises(KeyError):
        await anext(items)
    async with aclosing(engine.run_callback(work)) as items:
        await anext(items)
        await asyncio.sleep(0.05)  # an error without a reader is dropped


async def test_a_stop_iteration_of_a_function_with_a_callback_is_raised(engine: EngineThread) -> None:
    def work(sink: Sink[int]) -> None:
        next(iter([]))

    with pytest.raises(RuntimeError, match="StopIteration in model code"):
        await asyncio.wait_for(anext(engine.run_callback(work)), 5)
