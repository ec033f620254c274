"""How long the ingress waits for a replica to note a request, and what makes it give up."""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest

from rbee_serve.errors import WorkerLost
from rbee_serve.ingress import router as module
from rbee_serve.ingress.router import Router, UpstreamResponse
from rbee_serve.ingress.worker_state_cache import FRESH_S
from rbee_serve.request import InferenceRequest
from rbee_serve.sse import KEEP_ALIVE
from rbee_serve.transport.acceptor import Endpoint
from rbee_serve.transport.request_messages import ResponseChunk
from rbee_serve.transport.request_server import _Stream as Answering
from rbee_serve.transport.response_stream import ResponseStream
from tests.ingress.application import ready_view
from tests.ingress.border import Border, Work, soon

ACKNOWLEDGE_S = 0.2


async def done(fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
    yield b"data: [DONE]\n\n", True


class Replica(Border):
    """A deployment handle whose replica is found after `delay_s` seconds and then answers its requests."""

    def __init__(self, delay_s: float, work: Work = done) -> None:
        super().__init__(work)
        self.delay_s = delay_s

    async def _place(self) -> Endpoint:
        await asyncio.sleep(self.delay_s)
        return await super()._place()


async def outcome(
    delay_s: float, seconds_since_last_push: Callable[[], Awaitable[float]], *, fresh: bool = False
) -> Any:
    """What came of a request, and after how many seconds."""

    async def asked(worker_id: str) -> float:
        return await seconds_since_last_push()

    replica: Any = Replica(delay_s)
    router = Router({"echo-0": replica}, ACKNOWLEDGE_S, asked, lambda worker_id, heard_at: fresh)
    began = time.monotonic()
    try:
        (await router.send("echo-0", InferenceRequest(), "corr")).close()
    except WorkerLost:
        return "lost", time.monotonic() - began
    else:
        return "answered", time.monotonic() - began
    finally:
        await replica.close()


async def lively() -> float:
    return 0.1


async def silent() -> float:
    return 1.0


async def gone() -> float:
    return math.inf


async def hanging() -> float:
    await asyncio.sleep(60)
    return 0.0


async def broken() -> float:
    raise RuntimeError("the hub was killed")


@pytest.mark.parametrize("seconds_since_last_push", [silent, gone, hanging, broken])
async def test_a_replica_that_nobody_has_heard_of_is_given_up_in_time(
    seconds_since_last_push: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HUB_ANSWERS_S", 0.5)
    found, took_s = await outcome(30, seconds_since_last_push)
    assert found == "lost"
    assert took_s < ACKNOWLEDGE_S + 3


async def test_a_slow_replica_that_shows_life_is_waited_for() -> None:
    assert (await outcome(3 * ACKNOWLEDGE_S, lively))[0] == "answered"


async def test_one_that_has_just_come_up_may_have_been_silent_for_longer() -> None:
    assert (await outcome(2 * ACKNOWLEDGE_S, silent, fresh=True))[0] == "answered"
    assert (await outcome(30, gone, fresh=True))[0] == "lost"


async def test_one_that_falls_silent_while_it_is_waited_for_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASK_AGAIN_S", 0.05)
    silences = iter([0.1, 1.0, 1.4, 1.6])

    async def growing() -> float:
        return next(silences)

    assert (await outcome(30, growing))[0] == "lost"
    assert next(silences, None) is None


async def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLOW_ACKNOWLEDGEMENT_S", 0.5)
    assert (await outcome(30, lively))[0] == "lost"


async def test_what_waits_for_one_worker_asks_the_hub_once() -> None:
    asked = 0

    async def counted(worker_id: str) -> float:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.1)
        return math.inf

    handles: dict[str, Any] = {"echo-0": Replica(30)}
    router = Router(handles, ACKNOWLEDGE_S, counted, lambda worker_id, heard_at: False)
    waiting = [router.send("echo-0", InferenceRequest(), "corr") for _ in range(100)]
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(error) for error in found} == {WorkerLost}
    assert asked == 1


async def test_a_replica_that_answers_others_needs_no_hub() -> None:
    replica: Any = Replica(2 * ACKNOWLEDGE_S)

    async def away(worker_id: str) -> float:
        return math.inf

    router = Router({"echo-0": replica}, ACKNOWLEDGE_S, away, lambda worker_id, heard_at: False, balanced=["echo-0"])
    waiting = asyncio.create_task(router.send("echo-0", InferenceRequest(), "corr"))
    await asyncio.sleep(ACKNOWLEDGE_S / 2)
    replica.delay_s = 0
    (await router.send("echo-0", InferenceRequest(), "corr")).close()
    (await waiting).close()
    await replica.close()


async def test_silence_is_filled_with_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP_ALIVE_S", 0.01)

    async def slow(fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
        yield b"data: 1\n\n", False
        await asyncio.sleep(0.05)
        yield b"data: [DONE]\n\n", True

    replica: Any = Replica(0, slow)
    router = Router({"echo-0": replica}, ACKNOWLEDGE_S, lambda worker_id: lively(), lambda *_: False)
    reply = await router.send("echo-0", InferenceRequest(), "corr")
    chunks = [chunk async for chunk in reply.chunks()]
    reply.close()
    assert chunks.count(KEEP_ALIVE) >= 2
    assert [chunk for chunk in chunks if chunk != KEEP_ALIVE] == [b"data: 1\n\n", b"data: [DONE]\n\n"]
    await replica.close()


async def endless(fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
    while True:
        yield b"data: 1\n\n", False
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("work", [done, endless])
async def test_nothing_is_kept_of_an_answer_that_was_closed_until_python_looks_for_circles(work: Work) -> None:
    replica: Any = Replica(0, work)
    router = Router({"echo-0": replica}, ACKNOWLEDGE_S, lambda worker_id: lively(), lambda *_: False)
    gc.collect()
    gc.disable()
    before = len(answers())
    try:
        reply = await router.send("echo-0", InferenceRequest(), "corr")
        reply.close()
        del reply
        await soon(lambda: replica.asked == 0)
        await asyncio.sleep(0)
        assert len(answers()) == before
    finally:
        gc.enable()
    await replica.close()


def answers() -> list[object]:
    """All that Python keeps of answers. `isinstance` would ask each object for its class: some of torch then warn."""
    return [thing for thing in gc.get_objects() if type(thing) in (UpstreamResponse, ResponseStream, Answering)]


def test_a_replica_is_fresh_until_it_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    view, began = ready_view("echo-0"), time.monotonic()
    view._take(view.snapshot)
    assert view.recently_started("echo-0", -math.inf)
    assert view.recently_started("echo-0", began - 1)
    assert not view.recently_started("echo-0", time.monotonic())
    monkeypatch.setattr(time, "monotonic", lambda: began + FRESH_S + 1)
    assert not view.recently_started("echo-0", -math.inf)
