"""A channel from end to end in one process: the ingress's end on the replica's, with a border that can break."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from rbee_serve.errors import InvalidRequest
from rbee_serve.ingress import channel as module
from rbee_serve.ingress.channel import Answer, Channel
from rbee_serve.multiplexing import WINDOW_BYTES, Fragment
from rbee_serve.replica.channel import MESSAGE_BYTES
from rbee_serve.replica.event_stream import refusal
from tests.ingress.border import Border


def channel_to(border: Border, *, grouped: bool = True) -> Channel:
    handle: Any = border
    return Channel(handle, lambda: None, grouped=grouped)


async def whole(answer: Answer) -> bytes:
    """All of an answer, which is then closed."""
    data, complete = await answer.next()
    while not complete:
        more, complete = await answer.next()
        data += more
    answer.close()
    return data


async def counting(fields: dict[str, Any]) -> AsyncGenerator[Fragment, None]:
    """As many numbers as the request asks for."""
    for i in range(fields["count"]):
        yield f"{fields['name']}.{i} ".encode(), False
        await asyncio.sleep(0)
    yield b"end", True


def counted(name: str, count: int) -> bytes:
    return b"".join(f"{name}.{i} ".encode() for i in range(count)) + b"end"


@pytest.mark.parametrize("grouped", [True, False])
async def test_every_answer_comes_whole_and_in_order_however_many_there_are(grouped: bool) -> None:
    border = Border(counting)
    channel = channel_to(border, grouped=grouped)

    async def client(number: int) -> None:
        for turn in range(5):
            name, count = f"{number}-{turn}", (7 * number + turn) % 40
            assert await whole(channel.send({"name": name, "count": count}, "corr")) == counted(name, count)

    await asyncio.gather(*(client(number) for number in range(50)))
    assert sum(border.groups) == 250
    assert (len(border.groups) == 250) is not grouped
    assert not channel._answers
    await asyncio.sleep(0)
    assert not channel._calls
    assert not border.replica._channels


async def test_what_many_have_to_say_leaves_in_one_message() -> None:
    go = asyncio.Event()

    async def work(fields: dict[str, Any]) -> AsyncGenerator[Fragment, None]:
        yield b"first", False
        await go.wait()
        yield b"last", True

    border = Border(work)
    channel = channel_to(border)
    answers = [channel.send({}, "corr") for _ in range(20)]
    await asyncio.gather(*(answer.acknowledged for answer in answers))
    assert border.groups == [20]
    assert [await answer.next() for answer in answers] == [(b"first", False)] * 20
    go.set()
    assert [await whole(answer) for answer in answers] == [b"last"] * 20
    assert border.message_sizes == [20 * len(b"first"), 20 * len(b"last")]


async def test_one_that_comes_alone_does_not_wait_and_one_that_comes_meanwhile_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "HOLD_S", 30.0)
    border = Border(counting)
    border.hold = asyncio.Event()
    channel = channel_to(border)
    first = channel.send({"name": "a", "count": 1}, "corr")
    await asyncio.sleep(0)
    later = [channel.send({"name": "b", "count": 1}, "corr") for _ in range(3)]
    await asyncio.sleep(0.02)
    assert border.groups == [1]
    border.hold.set()
    assert await whole(first) == counted("a", 1)
    assert [await whole(answer) for answer in later] == [counted("b", 1)] * 3
    assert border.groups == [1, 3]


async def test_a_call_that_is_not_acknowledged_holds_others_up_for_a_moment_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "HOLD_S", 0.02)
    border = Border(counting)
    hold = border.hold = asyncio.Event()
    channel = channel_to(border)
    stuck = channel.send({"name": "a", "count": 1}, "corr")
    await asyncio.sleep(0)
    border.hold = None
    answer = channel.send({"name": "b", "count": 1}, "corr")
    async with asyncio.timeout(5):
        assert await whole(answer) == counted("b", 1)
    hold.set()
    assert await whole(stuck) == counted("a", 1)


async def test_an_answer_may_come_before_the_acknowledgement() -> None:
    border = Border(counting)
    channel = channel_to(border, grouped=False)
    carrying = channel.send({"name": "a", "count": 1000}, "corr")
    await carrying.acknowledged
    border.hold = asyncio.Event()
    answer = channel.send({"name": "b", "count": 1}, "corr")
    await asyncio.sleep(0)
    call = border.calls[-1]
    call.preloaded = await anext(call.messages)
    ending = asyncio.ensure_future(anext(call.messages, None))
    async with asyncio.timeout(5):
        await answer.acknowledged
        assert await whole(answer) == counted("b", 1)
        assert await ending is None
    border.hold.set()
    assert await whole(carrying) == counted("a", 1000)
    await soon(lambda: not channel._calls)


async def test_a_large_request_goes_alone() -> None:
    border = Border(counting)
    channel = channel_to(border)
    answers = [channel.send({"name": "x" * size, "count": 0}, "corr") for size in (1, module.SMALL_BYTES, 1)]
    assert [await whole(answer) for answer in answers] == [b"end"] * 3
    assert sorted(border.groups) == [1, 2]


async def soon(condition: Callable[[], bool]) -> None:
    """Return when it holds, which other tasks bring about without an event."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


class Endless:
    """Work without an end, and who does it."""

    def __init__(self) -> None:
        self.working: set[str] = set()

    async def __call__(self, fields: dict[str, Any]) -> AsyncGenerator[Fragment, None]:
        self.working.add(fields["name"])
        try:
            for i in itertools.count():
                yield f"{i} ".encode(), False
                await asyncio.sleep(0.001)
        finally:
            self.working.discard(fields["name"])

    async def until(self, names: set[str]) -> None:
        await soon(lambda: self.working == names)


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("order", ["abcd", "dcba", "bcda"])
async def test_who_leaves_stops_his_own_work_only(order: str, grouped: bool) -> None:
    work = Endless()
    border = Border(work)
    channel = channel_to(border, grouped=grouped)
    answers = {name: channel.send({"name": name}, "corr") for name in "abcd"}
    await work.until(set("abcd"))
    staying = set("abcd")
    for name in order:
        answers[name].close()
        staying.discard(name)
        await work.until(staying)
        for other in staying:
            await answers[other].next()
            await answers[other].next()
    await soon(lambda: not border.replica._channels and not channel._calls)


async def test_who_leaves_before_he_was_sent_is_not_sent() -> None:
    border = Border(counting)
    channel = channel_to(border)
    gone, stays = (channel.send({"name": name, "count": 1}, "corr") for name in "ab")
    gone.close()
    assert await whole(stays) == counted("b", 1)
    assert border.groups == [1]


@pytest.mark.parametrize("others", [0, 1])
async def test_who_leaves_before_the_acknowledgement_is_stopped_after_it(others: int) -> None:
    work = Endless()
    border = Border(work)
    border.hold = asyncio.Event()
    channel = channel_to(border)
    leaving = channel.send({"name": "leaving"}, "corr")
    staying = [channel.send({"name": "staying"}, "corr") for _ in range(others)]
    await asyncio.sleep(0.01)
    leaving.close()
    await asyncio.sleep(0.01)
    border.hold.set()
    await work.until({"staying"} if others else set())
    for answer in staying:
        answer.close()
    await work.until(set())


@pytest.mark.parametrize("grouped", [True, False])
async def test_after_a_thousand_who_left_at_any_moment_nothing_is_left(grouped: bool) -> None:
    generator = random.Random(0)
    work = Endless()
    border = Border(work)
    channel = channel_to(border, grouped=grouped)

    async def client(number: int) -> None:
        for turn in range(20):
            answer = channel.send({"name": f"{number}-{turn}"}, "corr")
            waiting = asyncio.ensure_future(answer.next())
            for _ in range(generator.randrange(12)):
                await asyncio.sleep(0)
            waiting.cancel()
            answer.close()

    await asyncio.gather(*(client(number) for number in range(50)))
    await work.until(set())
    await soon(lambda: not border.replica._channels and not channel._calls)
    assert not channel._answers
    assert not channel._pending


@pytest.mark.parametrize("broken", ["the one that carries", "another one", "all"])
async def test_a_call_that_breaks_fails_those_whose_answers_it_brought(broken: str) -> None:
    work = Endless()
    border = Border(work)
    channel = channel_to(border, grouped=False)
    first, second = (channel.send({"name": name}, "corr") for name in "ab")
    await work.until({"a", "b"})
    await asyncio.gather(first.acknowledged, second.acknowledged)

    async def dead(*_: Any) -> Any:
        raise ConnectionError("the replica died")
        yield

    for call in border.calls[slice(0, 2) if broken == "all" else {"t": slice(0, 1), "a": slice(1, 2)}[broken[0]]]:
        call.messages = dead()
        call.cancel()
    with pytest.raises((ConnectionError, StopAsyncIteration)):
        await whole(second)
    if broken != "another one":
        with pytest.raises((ConnectionError, StopAsyncIteration)):
            await whole(first)
    for answer in (first, second):
        answer.close()


async def test_a_reader_that_is_behind_slows_its_own_work_down_and_no_other() -> None:
    made: dict[str, int] = {"slow": 0, "fast": 0}
    piece = b"x" * 10_000

    async def work(fields: dict[str, Any]) -> AsyncGenerator[Fragment, None]:
        for _ in range(1000):
            made[fields["name"]] += 1
            yield piece, False
            await asyncio.sleep(0)
        yield b"end", True

    border = Border(work)
    channel = channel_to(border)
    slow, fast = channel.send({"name": "slow"}, "corr"), channel.send({"name": "fast"}, "corr")
    assert len(await whole(fast)) == 1000 * len(piece) + 3
    assert made["fast"] == 1000
    assert made["slow"] * len(piece) <= WINDOW_BYTES + len(piece)
    assert len(await whole(slow)) == 1000 * len(piece) + 3
    assert max(border.message_sizes) <= MESSAGE_BYTES


async def test_an_answer_larger_than_the_window_comes_whole() -> None:
    document = b"x" * (5 * WINDOW_BYTES)

    async def work(fields: dict[str, Any]) -> AsyncGenerator[Fragment, None]:
        yield document, True, "audio/wav"

    border = Border(work)
    answer = channel_to(border).send({}, "corr")
    assert await whole(answer) == document
    assert answer.media_type == "audio/wav"


async def test_a_refusal_and_a_fault_in_the_work_are_answers_too() -> None:
    async def work(fields: dict[str, Any]) -> AsyncGenerator[Fragment, None]:
        if fields["name"] == "fault":
            raise ValueError("nobody has foreseen this")
        yield refusal(InvalidRequest("not so"))

    channel = channel_to(Border(work))
    refused, failed = (channel.send({"name": name}, "corr") for name in ("refusal", "fault"))
    assert b'"message":"not so"' in await whole(refused)
    assert b'"code":"INTERNAL"' in await whole(failed)
