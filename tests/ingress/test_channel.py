"""A channel from end to end in one process: both ends of a connection that can break."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import pytest

from rbee_serve.errors import InvalidRequest
from rbee_serve.ingress import channel as module
from rbee_serve.ingress.channel import Channel
from rbee_serve.transport.handshake import Endpoint
from rbee_serve.transport.refusal import refusal
from rbee_serve.transport.request_messages import WINDOW_BYTES, ResponseChunk
from rbee_serve.transport.response_stream import ResponseStream
from tests.ingress.deployment_handle import Handle, Work, soon

Handles = Callable[[Work], Handle]


@pytest.fixture
async def handles() -> AsyncIterator[Handles]:
    """Makes handles, and closes them at the end."""
    made: list[Handle] = []

    def make(work: Work) -> Handle:
        made.append(Handle(work))
        return made[-1]

    yield make
    for handle in made:
        await handle.close()


def channel_to(handle: Handle, *, balanced: bool = False) -> Channel:
    ray_handle: Any = handle
    return Channel(ray_handle, "node", balanced=balanced)


async def whole(response: ResponseStream) -> bytes:
    """All data of a response, which is then closed."""
    data, complete = await response.next()
    while not complete:
        more, complete = await response.next()
        data += more
    response.close()
    return data


async def counting(fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
    """As many numbers as `count` in the request."""
    for i in range(fields["count"]):
        yield f"{fields['name']}.{i} ".encode(), False
        await asyncio.sleep(0)
    yield b"end", True


def counted(name: str, count: int) -> bytes:
    return b"".join(f"{name}.{i} ".encode() for i in range(count)) + b"end"


@pytest.mark.parametrize("balanced", [True, False])
async def test_every_response_is_complete_and_in_order_among_many(handles: Handles, balanced: bool) -> None:
    handle = handles(counting)
    channel = channel_to(handle, balanced=balanced)

    async def client(number: int) -> None:
        for turn in range(5):
            name, count = f"{number}-{turn}", (7 * number + turn) % 40
            assert await whole(channel.send({"name": name, "count": count}, "corr")) == counted(name, count)

    await asyncio.gather(*(client(number) for number in range(50)))
    assert len(handle.calls) == (250 if balanced else 1)
    assert len(handle.replica._connections) == 1
    await soon(lambda: handle.running == handle.open_calls == 0)


async def test_a_balanced_request_is_counted_by_ray_serve_until_it_is_done(handles: Handles) -> None:
    work = Endless()
    handle = handles(work)
    channel = channel_to(handle, balanced=True)
    responses = [channel.send({"name": name}, "corr") for name in "abc"]
    await work.until(set("abc"))
    assert handle.open_calls == 3
    for left, response in enumerate(responses, 1):
        response.close()
        await soon(lambda left=left: handle.open_calls == 3 - left)  # type: ignore[misc]


@pytest.mark.parametrize("balanced", [True, False])
async def test_requests_wait_until_ray_serve_has_found_a_replica(handles: Handles, balanced: bool) -> None:
    handle = handles(counting)
    handle.hold = asyncio.Event()
    channel = channel_to(handle, balanced=balanced)
    responses = [channel.send({"name": "a", "count": 3}, "corr") for _ in range(5)]
    await asyncio.sleep(0.02)
    assert not any(response.acknowledged.done() for response in responses)
    handle.hold.set()
    assert [await whole(response) for response in responses] == [counted("a", 3)] * 5


async def test_a_request_is_acknowledged_before_its_first_data(handles: Handles) -> None:
    go = asyncio.Event()

    async def work(fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
        await go.wait()
        yield b"end", True

    responses = [channel.send({}, "corr") for channel in [channel_to(handles(work))] for _ in range(20)]
    async with asyncio.timeout(5):
        await asyncio.gather(*(response.acknowledged for response in responses))
    go.set()
    assert [await whole(response) for response in responses] == [b"end"] * 20


class Endless:
    """Work without an end, and the names of the requests in it."""

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
async def test_closing_a_response_cancels_its_own_request_only(handles: Handles, order: str, balanced: bool) -> None:
    work = Endless()
    handle = handles(work)
    channel = channel_to(handle, balanced=balanced)
    responses = {name: channel.send({"name": name}, "corr") for name in "abcd"}
    await work.until(set("abcd"))
    open_names = set("abcd")
    for name in order:
        responses[name].close()
        open_names.discard(name)
        await work.until(open_names)
        for other in open_names:
            await responses[other].next()
            await responses[other].next()
    await soon(lambda: handle.running == handle.open_calls == 0)


@pytest.mark.parametrize("balanced", [True, False])
async def test_a_request_closed_before_a_replica_was_found_is_not_sent(handles: Handles, balanced: bool) -> None:
    seen: list[str] = []

    async def work(fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
        seen.append(fields["name"])
        yield b"end", True

    handle = handles(work)
    handle.hold = asyncio.Event()
    channel = channel_to(handle, balanced=balanced)
    gone, stays = (channel.send({"name": name}, "corr") for name in "ab")
    await asyncio.sleep(0)
    gone.close()
    handle.hold.set()
    assert await whole(stays) == b"end"
    assert seen == ["b"]
    await soon(lambda: handle.open_calls == 0)


@pytest.mark.parametrize("balanced", [True, False])
async def test_a_thousand_requests_closed_at_random_moments_leave_nothing(handles: Handles, balanced: bool) -> None:
    generator = random.Random(0)
    work = Endless()
    handle = handles(work)
    channel = channel_to(handle, balanced=balanced)

    async def client(number: int) -> None:
        for turn in range(20):
            response = channel.send({"name": f"{number}-{turn}"}, "corr")
            waiting = asyncio.ensure_future(response.next())
            for _ in range(generator.randrange(12)):
                await asyncio.sleep(0)
            waiting.cancel()
            response.close()

    await asyncio.gather(*(client(number) for number in range(50)))
    await work.until(set())
    await soon(lambda: handle.running == handle.open_calls == 0)
    assert not channel._waiting


@pytest.mark.parametrize("balanced", [True, False])
async def test_a_replica_that_dies_fails_its_requests_and_the_next_goes_to_another(
    handles: Handles, balanced: bool
) -> None:
    work = Endless()
    handle = handles(work)
    channel = channel_to(handle, balanced=balanced)
    responses = [channel.send({"name": name}, "corr") for name in "ab"]
    await work.until({"a", "b"})
    handle.kill()
    for response in responses:
        with pytest.raises(ConnectionError):
            await whole(response)
        response.close()
    await work.until(set())
    later = channel.send({"name": "c"}, "corr")
    await work.until({"c"})
    later.close()
    await soon(lambda: handle.running == handle.open_calls == 0)


@pytest.mark.parametrize("balanced", [True, False])
async def test_a_stopping_replica_finishes_its_requests_and_gets_no_new_ones(handles: Handles, balanced: bool) -> None:
    go = asyncio.Event()

    async def work(fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
        yield b"first ", False
        await go.wait()
        yield b"last", True

    handle = handles(work)
    channel = channel_to(handle, balanced=balanced)
    response = channel.send({}, "corr")
    await response.acknowledged
    old = handle.replica
    handle.replace()
    closing = asyncio.create_task(old.close(5))
    await asyncio.sleep(0.02)
    later = channel.send({}, "corr")
    await later.acknowledged
    assert not closing.done()
    assert [len(connection.tasks()) for connection in old._connections] == [1]
    go.set()
    assert [await whole(response), await whole(later)] == [b"first last"] * 2
    await closing
    await soon(lambda: not old._connections)


async def test_an_error_of_ray_serve_fails_the_waiting_requests(handles: Handles) -> None:
    handle = handles(counting)

    async def nowhere() -> Any:
        raise RuntimeError("the deployment has failed")

    handle.reach = nowhere  # type: ignore[method-assign]
    channel = channel_to(handle)
    for _ in range(2):
        response = channel.send({"name": "a", "count": 1}, "corr")
        with pytest.raises(RuntimeError, match="the deployment has failed"):
            await whole(response)


@pytest.mark.parametrize("balanced", [True, False])
async def test_a_connection_that_fails_leaves_no_open_call(handles: Handles, balanced: bool) -> None:
    handle = handles(counting)

    async def closed_port() -> Endpoint:
        return Endpoint("127.0.0.1", 1, "token")

    handle.reach = closed_port  # type: ignore[method-assign]
    response = channel_to(handle, balanced=balanced).send({"name": "a", "count": 1}, "corr")
    with pytest.raises(OSError, match="1"):
        await whole(response)
    await soon(lambda: handle.open_calls == 0)


@pytest.mark.parametrize("balanced", [True, False])
async def test_a_call_without_an_answer_fails_its_requests_after_the_time_limit(
    handles: Handles, balanced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNANSWERED_CALL_S", 0.05)
    handle = handles(counting)
    handle.hold = asyncio.Event()
    response = channel_to(handle, balanced=balanced).send({"name": "a", "count": 1}, "corr")
    async with asyncio.timeout(2):
        with pytest.raises(TimeoutError):
            await response.next()
    assert response.complete


@pytest.mark.parametrize("balanced", [True, False])
async def test_a_handle_that_cannot_be_called_fails_the_request(handles: Handles, balanced: bool) -> None:
    handle = handles(counting)

    def stopped(node_id: str) -> Any:
        raise RuntimeError("Serve is shut down")

    handle.remote = stopped  # type: ignore[method-assign]
    response = channel_to(handle, balanced=balanced).send({"name": "a", "count": 1}, "corr")
    async with asyncio.timeout(2):
        with pytest.raises(RuntimeError, match="shut down"):
            await response.next()


async def test_a_slow_reader_pauses_its_own_request_only(handles: Handles) -> None:
    produced: dict[str, int] = {"slow": 0, "fast": 0}
    data = b"x" * 10_000

    async def work(fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
        for _ in range(1000):
            produced[fields["name"]] += 1
            yield data, False
            await asyncio.sleep(0)
        yield b"end", True

    handle = handles(work)
    channel = channel_to(handle)
    slow, fast = channel.send({"name": "slow"}, "corr"), channel.send({"name": "fast"}, "corr")
    assert len(await whole(fast)) == 1000 * len(data) + 3
    assert produced["fast"] == 1000
    assert produced["slow"] * len(data) <= WINDOW_BYTES + len(data)
    assert len(await whole(slow)) == 1000 * len(data) + 3


async def test_a_document_larger_than_the_window_is_complete(handles: Handles) -> None:
    document = b"x" * (5 * WINDOW_BYTES)

    async def work(fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
        yield document, True, "audio/wav"

    handle = handles(work)
    response = channel_to(handle).send({}, "corr")
    assert await whole(response) == document
    assert response.media_type == "audio/wav"


async def test_a_refusal_and_an_unexpected_exception_are_responses(handles: Handles) -> None:
    async def work(fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
        if fields["name"] == "fault":
            raise ValueError("an unexpected exception")
        yield refusal(InvalidRequest("not so"))

    channel = channel_to(handles(work))
    refused, failed = (channel.send({"name": name}, "corr") for name in ("refusal", "fault"))
    assert b'"message":"not so"' in await whole(refused)
    assert b'"code":"INTERNAL"' in await whole(failed)
