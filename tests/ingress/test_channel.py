"""A channel from end to end in one process: the ingress's end on the replica's, with a border that can break."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import pytest

from rbee_serve.errors import InvalidRequest
from rbee_serve.ingress.channel import Channel
from rbee_serve.transport.refusal import refusal
from rbee_serve.transport.request_messages import WINDOW_BYTES, ResponseChunk
from rbee_serve.transport.response_stream import ResponseStream
from tests.ingress.border import Border, Work, soon

Borders = Callable[[Work], Border]


@pytest.fixture
async def borders() -> AsyncIterator[Borders]:
    """Makes borders, and closes them in the end."""
    made: list[Border] = []

    def make(work: Work) -> Border:
        made.append(Border(work))
        return made[-1]

    yield make
    for border in made:
        await border.close()


def channel_to(border: Border, *, balanced: bool = False) -> Channel:
    handle: Any = border
    return Channel(handle, "node", lambda: None, balanced=balanced)


async def whole(answer: ResponseStream) -> bytes:
    """All of an answer, which is then closed."""
    data, complete = await answer.next()
    while not complete:
        more, complete = await answer.next()
        data += more
    answer.close()
    return data


async def counting(fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
    """As many numbers as the request asks for."""
    for i in range(fields["count"]):
        yield f"{fields['name']}.{i} ".encode(), False
        await asyncio.sleep(0)
    yield b"end", True


def counted(name: str, count: int) -> bytes:
    return b"".join(f"{name}.{i} ".encode() for i in range(count)) + b"end"


@pytest.mark.parametrize("balanced", [True, False])
async def test_every_answer_comes_whole_and_in_order_however_many_there_are(borders: Borders, balanced: bool) -> None:
    border = borders(counting)
    channel = channel_to(border, balanced=balanced)

    async def client(number: int) -> None:
        for turn in range(5):
            name, count = f"{number}-{turn}", (7 * number + turn) % 40
            assert await whole(channel.send({"name": name, "count": count}, "corr")) == counted(name, count)

    await asyncio.gather(*(client(number) for number in range(50)))
    assert len(border.calls) == (250 if balanced else 1)
    assert len(border.replica._open) == 1
    await soon(lambda: border.asked == border.open_calls == 0)


async def test_a_balanced_request_is_counted_by_ray_serve_until_it_is_done(borders: Borders) -> None:
    work = Endless()
    border = borders(work)
    channel = channel_to(border, balanced=True)
    answers = [channel.send({"name": name}, "corr") for name in "abc"]
    await work.until(set("abc"))
    assert border.open_calls == 3
    for left, answer in enumerate(answers, 1):
        answer.close()
        await soon(lambda left=left: border.open_calls == 3 - left)  # type: ignore[misc]


@pytest.mark.parametrize("balanced", [True, False])
async def test_requests_wait_until_ray_serve_has_found_a_replica(borders: Borders, balanced: bool) -> None:
    border = borders(counting)
    border.hold = asyncio.Event()
    channel = channel_to(border, balanced=balanced)
    answers = [channel.send({"name": "a", "count": 3}, "corr") for _ in range(5)]
    await asyncio.sleep(0.02)
    assert not any(answer.acknowledged.done() for answer in answers)
    border.hold.set()
    assert [await whole(answer) for answer in answers] == [counted("a", 3)] * 5


async def test_a_request_is_acknowledged_before_there_is_anything_to_say(borders: Borders) -> None:
    go = asyncio.Event()

    async def work(fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
        await go.wait()
        yield b"end", True

    answers = [channel.send({}, "corr") for channel in [channel_to(borders(work))] for _ in range(20)]
    async with asyncio.timeout(5):
        await asyncio.gather(*(answer.acknowledged for answer in answers))
    go.set()
    assert [await whole(answer) for answer in answers] == [b"end"] * 20


class Endless:
    """Work without an end, and who does it."""

    def __init__(self) -> None:
        self.working: set[str] = set()

    async def __call__(self, fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
        self.working.add(fields["name"])
        try:
            for i in itertools.count():
                yield f"{i} ".encode(), False
                await asyncio.sleep(0.001)
        finally:
            self.working.discard(fields["name"])

    async def until(self, names: set[str]) -> None:
        await soon(lambda: self.working == names)


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("order", ["abcd", "dcba", "bcda"])
async def test_who_leaves_stops_his_own_work_only(borders: Borders, order: str, balanced: bool) -> None:
    work = Endless()
    border = borders(work)
    channel = channel_to(border, balanced=balanced)
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
    await soon(lambda: border.asked == border.open_calls == 0)


@pytest.mark.parametrize("balanced", [True, False])
async def test_who_leaves_before_a_replica_was_found_is_not_sent(borders: Borders, balanced: bool) -> None:
    seen: list[str] = []

    async def work(fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
        seen.append(fields["name"])
        yield b"end", True

    border = borders(work)
    border.hold = asyncio.Event()
    channel = channel_to(border, balanced=balanced)
    gone, stays = (channel.send({"name": name}, "corr") for name in "ab")
    await asyncio.sleep(0)
    gone.close()
    border.hold.set()
    assert await whole(stays) == b"end"
    assert seen == ["b"]
    await soon(lambda: border.open_calls == 0)


@pytest.mark.parametrize("balanced", [True, False])
async def test_after_a_thousand_who_left_at_any_moment_nothing_is_left(borders: Borders, balanced: bool) -> None:
    generator = random.Random(0)
    work = Endless()
    border = borders(work)
    channel = channel_to(border, balanced=balanced)

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
    await soon(lambda: border.asked == border.open_calls == 0)
    assert not channel._waiting


@pytest.mark.parametrize("balanced", [True, False])
async def test_a_replica_that_dies_fails_its_requests_and_the_next_goes_to_another(
    borders: Borders, balanced: bool
) -> None:
    work = Endless()
    border = borders(work)
    channel = channel_to(border, balanced=balanced)
    answers = [channel.send({"name": name}, "corr") for name in "ab"]
    await work.until({"a", "b"})
    border.replace()
    for answer in answers:
        with pytest.raises(ConnectionError):
            await whole(answer)
        answer.close()
    await work.until(set())
    later = channel.send({"name": "c"}, "corr")
    await work.until({"c"})
    later.close()
    await soon(lambda: border.asked == border.open_calls == 0)


@pytest.mark.parametrize("balanced", [True, False])
async def test_a_replica_that_goes_finishes_what_it_has_and_gets_no_more(borders: Borders, balanced: bool) -> None:
    go = asyncio.Event()

    async def work(fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
        yield b"first ", False
        await go.wait()
        yield b"last", True

    border = borders(work)
    channel = channel_to(border, balanced=balanced)
    answer = channel.send({}, "corr")
    await answer.acknowledged
    old = border.replica
    border.replace_peacefully()
    closing = asyncio.create_task(old.close(5))
    await asyncio.sleep(0.02)
    later = channel.send({}, "corr")
    await later.acknowledged
    assert not closing.done()
    assert [len(connection.tasks()) for connection in old._open] == [1]
    go.set()
    assert [await whole(answer), await whole(later)] == [b"first last"] * 2
    await closing
    await soon(lambda: not old._open)


async def test_a_replica_that_ray_serve_cannot_find_fails_what_waits(borders: Borders) -> None:
    border = borders(counting)

    async def nowhere() -> Any:
        raise RuntimeError("the deployment has failed")

    border._place = nowhere  # type: ignore[method-assign]
    channel = channel_to(border)
    for _ in range(2):
        answer = channel.send({"name": "a", "count": 1}, "corr")
        with pytest.raises(RuntimeError, match="the deployment has failed"):
            await whole(answer)


async def test_a_reader_that_is_behind_slows_its_own_work_down_and_no_other(borders: Borders) -> None:
    made: dict[str, int] = {"slow": 0, "fast": 0}
    piece = b"x" * 10_000

    async def work(fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
        for _ in range(1000):
            made[fields["name"]] += 1
            yield piece, False
            await asyncio.sleep(0)
        yield b"end", True

    border = borders(work)
    channel = channel_to(border)
    slow, fast = channel.send({"name": "slow"}, "corr"), channel.send({"name": "fast"}, "corr")
    assert len(await whole(fast)) == 1000 * len(piece) + 3
    assert made["fast"] == 1000
    assert made["slow"] * len(piece) <= WINDOW_BYTES + len(piece)
    assert len(await whole(slow)) == 1000 * len(piece) + 3


async def test_an_answer_larger_than_the_window_comes_whole(borders: Borders) -> None:
    document = b"x" * (5 * WINDOW_BYTES)

    async def work(fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
        yield document, True, "audio/wav"

    border = borders(work)
    answer = channel_to(border).send({}, "corr")
    assert await whole(answer) == document
    assert answer.media_type == "audio/wav"


async def test_a_refusal_and_a_fault_in_the_work_are_answers_too(borders: Borders) -> None:
    async def work(fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
        if fields["name"] == "fault":
            raise ValueError("nobody has foreseen this")
        yield refusal(InvalidRequest("not so"))

    channel = channel_to(borders(work))
    refused, failed = (channel.send({"name": name}, "corr") for name in ("refusal", "fault"))
    assert b'"message":"not so"' in await whole(refused)
    assert b'"code":"INTERNAL"' in await whole(failed)
