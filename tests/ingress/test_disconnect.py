"""Results that arrive when the client is gone or the call is cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rbee_serve.ingress.disconnect import ClientDisconnected, cancel_on_disconnect


async def connected() -> Any:
    await asyncio.Event().wait()


async def disconnect() -> Any:
    return {"type": "http.disconnect"}


async def stubborn() -> str:
    """Work that completes in spite of its cancellation."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return "result"
    return "never"


async def test_a_result_that_is_delivered_is_not_discarded() -> None:
    discarded: list[str] = []

    async def work() -> str:
        return "result"

    assert await cancel_on_disconnect(connected, work(), discarded.append) == "result"
    await asyncio.sleep(0)
    assert discarded == []


async def test_a_result_that_comes_after_the_disconnect_is_discarded() -> None:
    discarded: list[str] = []
    with pytest.raises(ClientDisconnected):
        await cancel_on_disconnect(disconnect, stubborn(), discarded.append)
    assert discarded == ["result"]


@pytest.mark.parametrize("turns", range(1, 8))
async def test_a_cancellation_at_any_moment_delivers_or_discards_the_result(turns: int) -> None:
    """The work completes in its third turn of the event loop."""
    discarded: list[str] = []
    completed: list[str] = []

    async def work() -> str:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        completed.append("result")
        return "result"

    call = asyncio.create_task(cancel_on_disconnect(connected, work(), discarded.append))
    for _ in range(turns):
        await asyncio.sleep(0)
    call.cancel()
    (outcome,) = await asyncio.gather(call, return_exceptions=True)
    if outcome == "result":
        assert discarded == []
    else:
        assert isinstance(outcome, asyncio.CancelledError)
        assert discarded == completed
