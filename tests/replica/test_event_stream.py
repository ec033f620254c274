"""Each way in which a backend's stream can end, and what is made of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from rbee_serve.errors import InsufficientVram, InternalError, InvalidRequest
from rbee_serve.events import End, Error, Event, Output, Progress, Started, StopReason
from rbee_serve.grammar import check_stream
from rbee_serve.outputs import TokenOutput
from rbee_serve.replica import event_stream
from rbee_serve.replica.event_stream import frames, ordered

STARTED = Started(job_id="job-1", model="m", started_at="2026-01-01T00:00:00.000+00:00")
END = End(tokens_out=1, decode_time_ms=1, stop_reason=StopReason.COMPLETE)


def token(i: int, text: str = "a") -> Output[TokenOutput]:
    return Output(TokenOutput(t=text, i=i))


async def body_of(work: AsyncGenerator[Event[Any], None]) -> tuple[bytes, list[int]]:
    """The whole body, and how many bytes each message over the border had."""
    messages = [message async for message in frames(ordered(STARTED, work))]
    assert [terminal for _, terminal in messages] == [False] * (len(messages) - 1) + [True]
    return b"".join(data for data, _ in messages), [len(data) for data, _ in messages]


async def last_event(work: AsyncGenerator[Event[Any], None]) -> Event[Any]:
    body, _ = await body_of(work)
    return check_stream(body)[-1]


async def test_a_normal_stream_is_started_outputs_end_and_the_marker() -> None:
    async def work() -> AsyncGenerator[Event[Any], None]:
        yield token(0)
        yield END

    body, _ = await body_of(work())
    assert [type(event).__name__ for event in check_stream(body)] == ["Started", "Output", "End"]
    assert body.endswith(b"\n\ndata: [DONE]\n\n")


async def test_an_error_of_ours_reaches_the_client_as_it_is() -> None:
    async def work() -> AsyncGenerator[Event[Any], None]:
        yield token(0)
        raise InsufficientVram("take fewer pixels")

    assert await last_event(work()) == Error(code="INSUFFICIENT_VRAM", message="take fewer pixels", retriable=True)


async def test_what_is_raised_before_the_first_event_is_a_refusal() -> None:
    async def work() -> AsyncGenerator[Event[Any], None]:
        raise InvalidRequest("the prompt is too long")
        yield token(0)

    with pytest.raises(InvalidRequest, match="too long"):
        await body_of(work())


async def test_a_foreign_exception_before_the_first_event_is_a_refusal_without_its_text() -> None:
    async def work() -> AsyncGenerator[Event[Any], None]:
        raise ValueError("secret at 0xdeadbeef")
        yield token(0)

    with pytest.raises(InternalError) as caught:
        await body_of(work())
    assert "0x" not in caught.value.message


async def test_a_foreign_exception_becomes_a_fixed_sentence() -> None:
    async def work() -> AsyncGenerator[Event[Any], None]:
        yield token(0)
        raise ValueError("secret at 0xdeadbeef")

    body, _ = await body_of(work())
    assert b"0xdeadbeef" not in body
    assert b'"code":"INTERNAL"' in body
    check_stream(body)


@pytest.mark.parametrize("broken", ["nothing", "outputs_only", "started_again"])
async def test_a_backend_that_breaks_the_order_is_ended_with_an_error(broken: str) -> None:
    async def work() -> AsyncGenerator[Event[Any], None]:
        if broken != "nothing":
            yield token(0)
        if broken == "started_again":
            yield STARTED

    last = await last_event(work())
    assert isinstance(last, Error)
    assert last.code == "INTERNAL"


async def test_nothing_follows_an_end() -> None:
    async def work() -> AsyncGenerator[Event[Any], None]:
        yield END
        yield token(0)

    assert await last_event(work()) == END


async def test_closing_the_stream_closes_the_backend() -> None:
    closed = asyncio.Event()

    async def work() -> AsyncGenerator[Event[Any], None]:
        try:
            yield token(0)
            await asyncio.Event().wait()
        finally:
            closed.set()

    stream = frames(ordered(STARTED, work()))
    await anext(stream)
    await stream.aclose()
    assert closed.is_set()


async def test_the_first_event_leaves_at_once_and_what_is_queued_leaves_together() -> None:
    go = asyncio.Event()

    async def work() -> AsyncGenerator[Event[Any], None]:
        yield Progress(step=0, total=1)
        await go.wait()
        for i in range(100):
            yield token(i)
        yield END

    stream = frames(ordered(STARTED, work()))
    first, _ = await anext(stream)
    assert first.startswith(b'data: {"type":"started"')
    assert first.count(b"data: ") <= 2
    go.set()
    await asyncio.sleep(0.05)
    rest, terminal = await anext(stream)
    assert (first + rest).count(b"data: ") == 104
    assert terminal


async def test_a_stream_that_is_behind_gathers_more_and_one_that_is_not_holds_nothing_back() -> None:
    released = asyncio.Event()

    async def work() -> AsyncGenerator[Event[Any], None]:
        for i in range(1000):
            if i == 500:
                await released.wait()
            yield token(i)
            await asyncio.sleep(0 if i < 500 else 0.001)
            if i == 520:
                break
        yield END

    counts = []
    async for data, _ in frames(ordered(STARTED, work())):
        counts.append(data.count(b"data: "))
        if sum(counts) == 501:  # all that the backend has given so far
            released.set()
        for _ in range(3 if sum(counts) < 400 else 0):
            await asyncio.sleep(0)
    assert counts[0] == 1
    assert max(counts[:20]) > 3 * counts[1]
    assert counts[-10:-1] == [1] * 9


async def test_a_large_backlog_is_cut_and_slows_the_backend_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "BACKLOG_BYTES", 50_000)
    made = 0

    async def work() -> AsyncGenerator[Event[Any], None]:
        nonlocal made
        for i in range(1000):
            made += 1
            yield token(i, "x" * 1000)
        yield END

    stream = frames(ordered(STARTED, work()))
    await anext(stream)
    await asyncio.sleep(0.05)
    assert made < 120  # a chunk of 32 frames has gone, and 50 kB of frames wait
    sizes = [len(data) async for data, _ in stream]
    assert made == 1000
    assert max(sizes) <= event_stream.CHUNK_BYTES


async def test_silence_is_filled_with_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "KEEP_ALIVE_S", 0.01)

    async def work() -> AsyncGenerator[Event[Any], None]:
        yield Progress(step=0, total=1)
        await asyncio.sleep(0.05)
        yield END

    body, _ = await body_of(work())
    assert body.count(b": keep-alive\n\n") >= 2
    check_stream(body)
