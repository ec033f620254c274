"""Items of many requests in batches, without a model."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterable
from contextlib import aclosing

import pytest

from rbee_serve.worker.batching import MAX_WAIT_S, Batcher
from rbee_serve.worker.watchdog import Watchdog


class Model:
    """Upper-cases texts, notes each batch, and works on none before its gate is open."""

    def __init__(
        self,
        budget: int = 1000,
        overhead: int = 10,
        clock: Watchdog | None = None,
        concurrency: int = 1,
        padded: bool = True,
    ) -> None:
        self.batches: list[list[str]] = []
        self.alone: list[bool] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()
        self.batcher = Batcher(
            self.run, len, max_batch_cost=budget, batch_overhead=overhead, watchdog=clock or Watchdog(math.inf),
            concurrency=concurrency, before_batch=self.alone.append, padded=padded,
        )  # fmt: skip

    def run(self, texts: list[str]) -> Iterable[str]:
        self.begun.set()
        self.gate.wait(5)
        self.threads.add(threading.get_ident())
        self.batches.append(texts)
        if any("bad" in text for text in texts):
            raise ValueError("bad text")
        return [text.upper() for text in texts]

    async def ask(self, *texts: str) -> list[str]:
        async with aclosing(self.batcher.results(texts)) as results:
            return [result async for result in results]

    async def busy(self, text: str = "busy") -> asyncio.Task[list[str]]:
        """A request that the model does not finish before the gate is open."""
        self.gate.clear()
        self.begun.clear()
        task = asyncio.create_task(self.ask(text))
        await asyncio.to_thread(self.begun.wait, 5)
        return task


async def requests(model: Model, *asked: Iterable[str]) -> list[asyncio.Task[list[str]]]:
    tasks = [asyncio.create_task(model.ask(*texts)) for texts in asked]
    await asyncio.sleep(0)
    return tasks


async def test_a_lone_item_does_not_wait_for_others() -> None:
    model = Model()
    assert await asyncio.wait_for(model.ask("one"), 1) == ["ONE"]
    assert model.batches == [["one"]]


async def test_what_gathers_while_the_model_is_busy_is_worked_on_together_in_one_thread() -> None:
    model = Model()
    busy = await model.busy()
    waiting = await requests(model, ["aaa", "bbb"], ["ccc"], ["ddd"])
    model.gate.set()
    assert await asyncio.gather(busy, *waiting) == [["BUSY"], ["AAA", "BBB"], ["CCC"], ["DDD"]]
    assert [sorted(batch) for batch in model.batches] == [["busy"], ["aaa", "bbb", "ccc", "ddd"]]
    assert len(model.threads) == 1
    assert threading.get_ident() not in model.threads


async def test_results_come_in_the_order_of_the_request_though_short_and_long_items_are_not_batched_together() -> None:
    model = Model()
    asked = ["a" * size for size in (40, 3, 39, 2, 38, 4, 1)]
    assert await model.ask(*asked) == [text.upper() for text in asked]
    assert [sorted(map(len, batch)) for batch in model.batches] == [[38, 39, 40], [1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("overhead", "batches"), [(0, [[10, 10], [20], [30]]), (20, [[10, 10, 20], [30]]), (50, [[10, 10, 20, 30]])]
)
async def test_items_are_batched_where_padding_them_costs_less_than_another_batch(
    overhead: int, batches: list[list[int]]
) -> None:
    model = Model(overhead=overhead)
    await model.ask(*("a" * size for size in (10, 10, 20, 30)))
    assert [sorted(map(len, batch)) for batch in model.batches] == batches


async def test_a_batch_takes_no_more_room_than_the_budget_padding_included() -> None:
    model = Model(budget=60, overhead=1000)
    await model.ask(*("a" * size for size in (10, 20, 15, 12, 18, 11, 100)))
    rooms = [len(batch) * max(map(len, batch)) for batch in model.batches]
    assert sum(map(len, model.batches)) == 7
    assert [room for room in rooms if room > 60] == [100]


async def test_items_that_are_not_padded_go_together_whatever_their_lengths() -> None:
    model = Model(budget=60, overhead=1, padded=False)
    await model.ask(*("a" * size for size in (10, 40, 5, 5, 50, 11)))
    assert [list(map(len, batch)) for batch in model.batches] == [[10, 40, 5, 5], [50], [11]]


async def test_a_request_of_one_item_does_not_wait_behind_all_of_a_long_one() -> None:
    model = Model(budget=40)
    busy = await model.busy()
    many, one, few = await requests(model, ["many"] * 50, ["lone"], ["some"] * 3)
    model.gate.set()
    assert await one == ["LONE"]
    assert len(model.batches) <= 3
    await few
    assert len(model.batches) <= 3
    assert not many.done()
    await asyncio.gather(busy, many)


async def test_a_long_request_gets_its_share_while_short_ones_keep_coming() -> None:
    model = Model(budget=16)
    many = asyncio.create_task(model.ask(*["many"] * 20))

    async def ask_on() -> int:
        asked = 0
        while not many.done():
            await model.ask("lone")
            asked += 1
            assert asked < 500, "the long request is starved"
        return asked

    assert min(await asyncio.gather(*(ask_on() for _ in range(12)))) > 5


async def test_a_request_that_is_given_up_leaves_the_queue_and_the_others_get_their_results() -> None:
    model = Model()
    busy = await model.busy()
    left, kept = await requests(model, ["left", "away"], ["kept"])
    left.cancel()
    await asyncio.sleep(0)
    busy.cancel()
    model.gate.set()
    assert await kept == ["KEPT"]
    assert model.batches == [["busy"], ["kept"]]
    assert left.cancelled()
    assert await model.ask("next") == ["NEXT"]


async def test_closing_after_the_first_result_withdraws_the_rest() -> None:
    model = Model(budget=4)
    results = model.batcher.results(["aaaa"] * 100)
    assert await anext(results) == "AAAA"
    await results.aclose()
    await model.ask("next")
    assert len(model.batches) < 10


@pytest.mark.parametrize("place", [0, 3, 6])
async def test_one_bad_item_fails_its_own_request_only(place: int) -> None:
    model = Model()
    busy = await model.busy()
    asked = [[f"good{n}", f"also{n}"] for n in range(7)]
    asked[place][1] = "bad 1"
    waiting = await requests(model, *asked)
    model.gate.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [isinstance(outcome, ValueError) for outcome in outcomes] == [n == place for n in range(7)]
    assert len(model.batches) <= 2 + 2 * 4, "the bad item is found by halving"
    assert await busy == ["BUSY"]
    assert await model.ask("next") == ["NEXT"]


async def test_a_request_with_several_bad_items_leaves_no_exception_behind() -> None:
    model = Model()
    with pytest.raises(ValueError, match="bad text"):
        await model.ask("bad 1", "good", "bad 2")


async def test_each_batch_is_a_step_and_steps_are_expected_only_while_one_is_worked_on() -> None:
    time = [0.0]
    clock = Watchdog(20, lambda: time[0])
    model = Model(clock=clock)
    busy = await model.busy()
    time[0] = 15
    assert clock.last_progress_age_s == 15
    assert not clock.is_stalled()
    time[0] = 25
    assert clock.is_stalled()
    model.gate.set()
    await busy
    assert not clock.is_stalled()
    assert clock.last_progress_age_s is None


async def test_a_model_that_gives_too_few_results_is_an_error_and_not_a_wait_for_ever() -> None:
    batcher: Batcher[str, str] = Batcher(lambda texts: [], len, max_batch_cost=10, watchdog=Watchdog(math.inf))
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        await anext(batcher.results(["a"]))


async def test_lanes_divide_what_waits_among_them_and_each_has_a_thread_of_its_own() -> None:
    model = Model(overhead=1, concurrency=2)
    model.gate.clear()
    waiting = await requests(model, ["aaaa", "bbbb"], ["cccc"], ["dddd"])
    await asyncio.to_thread(model.begun.wait, 5)
    model.gate.set()
    assert await asyncio.gather(*waiting) == [["AAAA", "BBBB"], ["CCCC"], ["DDDD"]]
    assert [len(batch) for batch in model.batches] == [2, 2]
    assert model.alone == [False, False]
    assert len(model.threads) == 2


async def test_a_lane_is_told_when_its_batch_is_all_there_is_to_do() -> None:
    model = Model(concurrency=2)
    busy = await model.busy()
    [other] = await requests(model, ["second"])
    await asyncio.sleep(0.05)
    model.gate.set()
    await asyncio.gather(busy, other)
    assert await model.ask("third") == ["THIRD"]
    assert model.alone == [True, False, True]


async def test_lanes_work_on_what_comes_at_the_very_end_of_the_last_batch() -> None:
    model = Model(concurrency=2)
    for number in range(200):
        assert await asyncio.wait_for(model.ask(f"text {number}"), 5) == [f"TEXT {number}"]


async def test_a_lane_beside_a_large_batch_waits_a_moment_for_more() -> None:
    model = Model(concurrency=2)
    large = await model.busy("a large one")
    (first,) = await requests(model, ["b"])
    await asyncio.sleep(MAX_WAIT_S / 4)
    (second,) = await requests(model, ["c"])
    await asyncio.sleep(2 * MAX_WAIT_S)
    model.gate.set()
    await asyncio.gather(large, first, second)
    assert sorted(model.batches) == [["a large one"], ["b", "c"]]


async def test_what_waits_beside_a_large_batch_is_taken_when_enough_has_come() -> None:
    model = Model(concurrency=2)
    large = await model.busy("a large one")
    waiting = await requests(model, ["b"], ["more"], ["yet more"])
    await asyncio.sleep(0)
    assert model.batcher._busy == 2
    model.gate.set()
    await asyncio.gather(large, *waiting)
