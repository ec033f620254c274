"""A connection that is opened on demand."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rbee_serve.transport.client_connection import OnDemand
from rbee_serve.transport.request_client import RequestClient


async def test_a_cancellation_of_the_call_for_the_endpoint_is_a_connection_error() -> None:
    opened = [RequestClient()]

    async def open_connection() -> RequestClient:
        if len(calls) == 1:
            raise asyncio.CancelledError
        return opened[0]

    calls: list[Any] = []
    connection = OnDemand(open_connection)
    calls.append(1)
    with pytest.raises(ConnectionError, match="cancelled"):
        await connection.get()
    calls.append(2)
    assert await connection.get() is opened[0]


async def test_a_caller_that_is_cancelled_stays_cancelled() -> None:
    async def open_connection() -> RequestClient:
        await asyncio.Event().wait()
        return RequestClient()

    connection = OnDemand(open_connection)
    caller = asyncio.create_task(connection.get())
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert caller.cancelled()
    connection.close()
