"""Backends whose author writes one generator, or one function of a batch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest

from rbee_serve.worker import (
    BatchedBackend,
    BlockingBackend,
    Device,
    End,
    Event,
    InferenceRequest,
    InvalidRequest,
    LoadContext,
    Metrics,
    Narration,
    Output,
    OutputValue,
    Progress,
    TokenOutput,
    Watchdog,
    WorkerConfig,
)

REQUEST = InferenceRequest(job_id="job-1")


class WordOutput(OutputValue, frozen=True, kw_only=True, tag="word"):
    word: str
    i: int = 0


def context() -> LoadContext:
    worker = WorkerConfig(id="w", type="w")
    return LoadContext(worker, Device("cpu"), lambda progress: None, Watchdog(20))


class Blocking(BlockingBackend[InferenceRequest, OutputValue]):
    """Yields what `make` yields."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        super().__init__(context())
        self._make = make

    def predict(self, request: InferenceRequest) -> Iterator[Any]:
        yield from self._make()


async def events_of(backend: Any) -> list[Event[Any]]:
    async with aclosing(backend.execute(REQUEST)) as events:
        found = [event async for event in events]
    backend.close()
    return found


async def test_the_outputs_of_each_class_are_numbered_and_followed_by_metrics_and_the_end() -> None:
    def make() -> Iterator[Any]:
        yield Progress(step=0, total=2)
        yield WordOutput(word="a")
        yield TokenOutput(t="x", i=99)
        yield Metrics({"beams": 4})
        yield WordOutput(word="b")

    backend = Blocking(make)
    await asyncio.to_thread(backend.memory_bytes)  # as after a load: in the event loop a gauge does not wait
    *outputs, metrics, end = await events_of(backend)
    assert outputs == [
        Progress(step=0, total=2),
        Output(WordOutput(word="a", i=0)),
        Output(TokenOutput(t="x", i=0)),
        Output(WordOutput(word="b", i=1)),
    ]
    assert isinstance(metrics, Metrics)
    assert metrics.values["beams"] == 4
    assert metrics.values["outputs_per_sec"] > 0
    assert metrics.values["vram_bytes"] > 0
    assert isinstance(end, End)
    assert (end.tokens_out, end.stop_reason) == (3, "COMPLETE")


async def test_predict_runs_in_one_other_thread_and_each_item_is_a_step() -> None:
    threads: set[int] = set()

    def make() -> Iterator[Any]:
        for _ in range(5):
            threads.add(threading.get_ident())
            yield WordOutput(word="a")

    await events_of(Blocking(make))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_an_error_before_the_first_output_is_raised_as_a_refusal() -> None:
    def make() -> Iterator[Any]:
        raise InvalidRequest.of_field("text", "rule", "has no words")
        yield

    with pytest.raises(InvalidRequest, match="has no words"):
        await events_of(Blocking(make))


async def test_a_disconnect_closes_the_generator_at_its_next_yield() -> None:
    closed, made = threading.Event(), [0]

    def make() -> Iterator[Any]:
        try:
            for made[0] in range(1_000_000):
                yield WordOutput(word="a")
        finally:
            closed.set()

    backend = Blocking(make)
    async with aclosing(backend.execute(REQUEST)) as events:
        await anext(events)
        assert backend.engine_requests() == 1
    assert await asyncio.to_thread(closed.wait, 5)
    assert made[0] < 10
    assert isinstance((await events_of(Blocking(lambda: iter(()))))[-1], End)
    backend.close()
    assert backend.engine_requests() == 0


class Upper(BatchedBackend[InferenceRequest, str, WordOutput]):
    """Upper-cases words, in batches of at most 4; fails for `bad`."""

    def __init__(self, words: list[str]) -> None:
        super().__init__(context(), max_batch=4)
        self.words = words
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()

    def prepare(self, request: InferenceRequest) -> list[str]:
        if not self.words:
            raise InvalidRequest.of_field("text", "rule", "has no words")
        return self.words

    def predict_batch(self, items: list[str]) -> list[WordOutput]:
        self.gate.wait(5)
        self.batches.append(items)
        if "bad" in items:
            raise ValueError("bad word")
        return [WordOutput(word=item.upper()) for item in items]


async def test_the_items_of_several_requests_share_batches_and_stay_in_order() -> None:
    backend = Upper(list("abc"))
    backend.gate.clear()
    runs = [asyncio.create_task(_collect(backend)) for _ in range(3)]
    await asyncio.sleep(0.2)
    backend.gate.set()
    for progress, *outputs, metrics, end in await asyncio.gather(*runs):
        assert progress == Progress(step=0, total=3)
        assert outputs == [Output(WordOutput(word=word, i=i)) for i, word in enumerate("ABC")]
        assert isinstance(metrics, Metrics)
        assert isinstance(end, End)
    assert max(map(len, backend.batches)) == 4
    backend.close()


async def _collect(backend: Upper) -> list[Event[WordOutput]]:
    async with aclosing(backend.execute(REQUEST)) as events:
        return [event async for event in events]


async def test_an_error_while_a_request_is_prepared_is_a_refusal_and_one_of_an_item_is_raised() -> None:
    with pytest.raises(InvalidRequest):
        await events_of(Upper([]))
    with pytest.raises(ValueError, match="bad word"):
        await events_of(Upper(["good", "bad"]))


async def test_a_stop_iteration_while_a_request_is_prepared_or_predicted_is_raised() -> None:
    class Failing(Upper):
        def prepare(self, request: InferenceRequest) -> list[str]:
            return next(iter([]))

    with pytest.raises(RuntimeError, match="StopIteration in model code"):
        await asyncio.wait_for(events_of(Failing([])), 5)

    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(events_of(Blocking(lambda: next(iter([])))), 5)


async def test_a_narration_passes_through() -> None:
    narration = Narration(actor="a", action="b", target="c", human="d")
    assert (await events_of(Blocking(lambda: iter([narration]))))[0] is narration
