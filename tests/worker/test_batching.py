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
    """Upper-cases texts, records each batch, and computes none before its gate is open."""

    def __init__(
        self,
        budget: int = 1000,
        overhead: int = 10,
        watchdog: Watchdog | None = None,
        concurrency: int = 1,
        padded: bool = True,
    ) -> None:
        self.batches: list[list[str]] = []
        self.alone: list[bool] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.batcher = Batcher(
            self.run, len, max_batch_cost=budget, batch_overhead=overhead, watchdog=watchdog or Watchdog(math.inf),
            concurrency=concurrency, before_batch=self.alone.append, padded=padded,
        )  # fmt: skip

    def run(self, texts: list[str]) -> Iterable[str]:
        self.started.set()
        self.gate.wait(5)
        self.threads.add(threading.get_ident())
        self.batches.append(texts)
        if any("bad" in text for text in texts):
            raise ValueError("bad text")
        return [text.upper() for text in texts]

    async def infer(self, *texts: str) -> list[str]:
        async with aclosing(self.batcher.results(texts)) as results:
            return [result async for result in results]

    async def busy(self, text: str = "busy") -> asyncio.Task[list[str]]:
        """A request that the model does not complete before the gate is open."""
        self.gate.clear()
        self.started.clear()
        task = asyncio.create_task(self.infer(text))
        await asyncio.to_thread(self.started.wait, 5)
        return task


async def requests(model: Model, *texts_of_requests: Iterable[str]) -> list[asyncio.Task[list[str]]]:
    tasks = [asyncio.create_task(model.infer(*texts)) for texts in texts_of_requests]
    await asyncio.sleep(0)
    return tasks


async def test_a_lone_item_does_not_wait_for_others() -> None:
    model = Model()
    assert await asyncio.wait_for(model.infer("one"), 1) == ["ONE"]
    assert model.batches == [["one"]]


async def test_items_that_arrive_while_the_model_is_busy_form_one_batch_in_one_thread() -> None:
    model = Model()
    busy = await model.busy()
    waiting = await requests(model, ["aaa", "bbb"], ["ccc"], ["ddd"])
    model.gate.set()
    assert await asyncio.gather(busy, *waiting) == [["BUSY"], ["AAA", "BBB"], ["CCC"], ["DDD"]]
    assert [sorted(batch) for batch in model.batches] == [["busy"], ["aaa", "bbb", "ccc", "ddd"]]
    assert len(model.threads) == 1
    assert threading.get_ident() not in model.threads


async def test_results_keep_the_order_of_the_request_though_short_and_long_items_are_in_separate_batches() -> None:
    model = Model()
    asked = ["a" * size for size in (40, 3, 39, 2, 38, 4, 1)]
    assert await model.infer(*asked) == [text.upper() for text in asked]
    assert [sorted(map(len, batch)) for batch in model.batches] == [[38, 39, 40], [1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("overhead", "batches"), [(0, [[10, 10], [20], [30]]), (20, [[10, 10, 20], [30]]), (50, [[10, 10, 20, 30]])]
)
async def test_items_share_a_batch_where_the_padding_costs_less_than_another_batch(
    overhead: int, batches: list[list[int]]
) -> None:
    model = Model(overhead=overhead)
    await model.infer(*("a" * size for size in (10, 10, 20, 30)))
    assert [sorted(map(len, batch)) for batch in model.batches] == batches


async def test_a_batch_costs_at_most_the_maximum_including_its_padding() -> None:
    model = Model(budget=60, overhead=1000)
    await model.infer(*("a" * size for size in (10, 20, 15, 12, 18, 11, 100)))
    costs = [len(batch) * max(map(len, batch)) for batch in model.batches]
    assert sum(map(len, model.batches)) == 7
    assert [cost for cost in costs if cost > 60] == [100]


async def test_items_that_are_not_padded_share_a_batch_whatever_their_sizes() -> None:
    model = Model(budget=60, overhead=1, padded=False)
    await model.infer(*("a" * size for size in (10, 40, 5, 5, 50, 11)))
    assert [list(map(len, batch)) for batch in model.batches] == [[10, 40, 5, 5], [50], [11]]


async def test_a_request_of_one_item_does_not_wait_for_all_of_a_long_one() -> None:
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


async def test_a_long_request_receives_its_share_while_short_ones_keep_arriving() -> None:
    model = Model(budget=16)
    many = asyncio.create_task(model.infer(*["many"] * 20))

    async def send_short_requests() -> int:
        count = 0
        while not many.done():
            await model.infer("lone")
            count += 1
            assert count < 500, "the long request is starved"
        return count

    assert min(await asyncio.gather(*(send_short_requests() for _ in range(12)))) > 5


async def test_a_cancelled_request_leaves_the_queue_and_the_others_receive_their_results() -> None:
    model = Model()
    busy = await model.busy()
    cancelled, kept = await requests(model, ["gone", "away"], ["kept"])
    cancelled.cancel()
    await asyncio.sleep(0)
    busy.cancel()
    model.gate.set()
    assert await kept == ["KEPT"]
    assert model.batches == [["busy"], ["kept"]]
    assert cancelled.cancelled()
    assert await model.infer("next") == ["NEXT"]


async def test_closing_after_the_first_result_withdraws_the_other_items() -> None:
    model = Model(budget=4)
    results = model.batcher.results(["aaaa"] * 100)
    assert await anext(results) == "AAAA"
    await results.aclose()
    await model.infer("next")
    assert len(model.batches) < 10


@pytest.mark.parametrize("position", [0, 3, 6])
async def test_a_bad_item_fails_only_its_own_request(position: int) -> None:
    model = Model()
    busy = await model.busy()
    asked = [[f"good{n}", f"also{n}"] for n in range(7)]
    asked[position][1] = "bad 1"
    waiting = await requests(model, *asked)
    model.gate.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [isinstance(outcome, ValueError) for outcome in outcomes] == [n == position for n in range(7)]
    assert len(model.batches) <= 2 + 2 * 4, "the bad item is found by halving"
    assert await busy == ["BUSY"]
    assert await model.infer("next") == ["NEXT"]


async def test_a_request_with_several_bad_items_leaves_no_exception_behind() -> None:
    model = Model()
    with pytest.raises(ValueError, match="bad text"):
        await model.infer("bad 1", "good", "bad 2")


async def test_a_stop_iteration_of_the_model_fails_the_request() -> None:
    batcher: Batcher[str, str] = Batcher(
        lambda texts: [next(iter([]))], len, max_batch_cost=10, watchdog=Watchdog(math.inf)
    )
    with pytest.raises(RuntimeError, match="StopIteration in model code"):
        await asyncio.wait_for(batcher.result("a"), 5)


@pytest.mark.parametrize("error", [ValueError, StopIteration])
async def test_an_error_before_a_batch_fails_its_requests(error: type[Exception]) -> None:
    def before_batch(alone: bool) -> None:
        raise error

    batcher: Batcher[str, str] = Batcher(
        lambda texts: texts, len, max_batch_cost=10, watchdog=Watchdog(math.inf), before_batch=before_batch
    )
    outcomes = await asyncio.wait_for(asyncio.gather(*map(batcher.result, "ab"), return_exceptions=True), 5)
    assert [type(outcome) for outcome in outcomes] == [RuntimeError if error is StopIteration else error] * 2


async def test_each_batch_is_a_step_and_steps_are_expected_only_while_a_batch_is_computed() -> None:
    time = [0.0]
    watchdog = Watchdog(20, lambda: time[0])
    model = Model(watchdog=watchdog)
    busy = await model.busy()
    time[0] = 15
    assert watchdog.last_progress_age_s == 15
    assert not watchdog.is_stalled()
    time[0] = 25
    assert watchdog.is_stalled()
    model.gate.set()
    await busy
    assert not watchdog.is_stalled()
    assert watchdog.last_progress_age_s is None


class SmallModel(Model):
    """Runs out of memory on a batch that costs more than `fits`, and records what each batch costs."""

    def __init__(self, fits: int, padded: bool = True) -> None:
        super().__init__(budget=64, overhead=1000, padded=padded)
        self.fits = fits
        self.costs: list[int] = []

    def run(self, texts: list[str]) -> Iterable[str]:
        lengths = [len(text) for text in texts]
        self.costs.append(len(texts) * max(lengths) if self.batcher._padded else sum(lengths))
        if self.costs[-1] > self.fits:
            raise OutOfMemoryError
        return super().run(texts)


class OutOfMemoryError(RuntimeError):
    """By torch's name."""


@pytest.mark.parametrize("padded", [True, False])
async def test_after_an_out_of_memory_no_batch_exceeds_what_fitted(padded: bool) -> None:
    model = SmallModel(fits=20, padded=padded)
    assert await model.infer(*["aaaa"] * 16) == ["AAAA"] * 16
    assert model.costs == [64, 32, 16, 16, 16, 16]
    model.costs.clear()
    await asyncio.gather(model.infer(*["bbbb"] * 16), model.infer(*["cc"] * 30), model.infer("d" * 15))
    assert max(model.costs) <= 20


async def test_an_item_that_is_larger_than_what_fitted_is_still_tried_alone() -> None:
    model = SmallModel(fits=20)
    await model.infer(*["aaaa"] * 16)
    with pytest.raises(OutOfMemoryError):
        await model.infer("a" * 30)
    assert await model.infer("a" * 18) == ["A" * 18]


async def test_another_failure_of_a_batch_does_not_lower_the_limit() -> None:
    model = Model(budget=64, overhead=1000)
    with pytest.raises(ValueError, match="bad text"):
        await model.infer("bad 1", *["aaaa"] * 11)
    await model.infer(*["bbbb"] * 16)
    assert len(model.batches[-1]) == 16


async def test_too_few_results_are_an_error_and_not_an_endless_wait() -> None:
    batcher: Batcher[str, str] = Batcher(lambda texts: [], len, max_batch_cost=10, watchdog=Watchdog(math.inf))
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        await anext(batcher.results(["a"]))


async def test_concurrent_batches_divide_the_queue_and_run_in_separate_threads() -> None:
    model = Model(overhead=1, concurrency=2)
    model.gate.clear()
    waiting = await requests(model, ["aaaa", "bbbb"], ["cccc"], ["dddd"])
    await asyncio.to_thread(model.started.wait, 5)
    model.gate.set()
    assert await asyncio.gather(*waiting) == [["AAAA", "BBBB"], ["CCCC"], ["DDDD"]]
    assert [len(batch) for batch in model.batches] == [2, 2]
    assert model.alone == [False, False]
    assert len(model.threads) == 2


async def test_before_batch_receives_whether_the_batch_is_all_the_work() -> None:
    model = Model(concurrency=2)
    busy = await model.busy()
    [other] = await requests(model, ["second"])
    await asyncio.sleep(0.05)
    model.gate.set()
    await asyncio.gather(busy, other)
    assert await model.infer("third") == ["THIRD"]
    assert model.alone == [True, False, True]


async def test_an_item_that_arrives_at_the_end_of_the_last_batch_is_computed() -> None:
    model = Model(concurrency=2)
    for number in range(200):
        assert await asyncio.wait_for(model.infer(f"text {number}"), 5) == [f"TEXT {number}"]


async def test_a_free_thread_beside_a_large_batch_waits_briefly_for_more_items() -> None:
    model = Model(concurrency=2)
    large = await model.busy("a large one")
    (first,) = await requests(model, ["b"])
    await asyncio.sleep(MAX_WAIT_S / 4)
    (second,) = await requests(model, ["c"])
    await asyncio.sleep(2 * MAX_WAIT_S)
    model.gate.set()
    await asyncio.gather(large, first, second)
    assert sorted(model.batches) == [["a large one"], ["b", "c"]]


async def test_enough_items_beside_a_large_batch_start_a_second_one() -> None:
    model = Model(concurrency=2)
    large = await model.busy("a large one")
    waiting = await requests(model, ["b"], ["more"], ["yet more"])
    await asyncio.sleep(0)
    assert model.batcher._busy == 2
    model.gate.set()
    await asyncio.gather(large, *waiting)
