"""Cancellation on disconnect: work for a client ends within milliseconds of the client's closing its connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from rbee_serve.transport.cancellation import is_own_cancellation

T = TypeVar("T")


class ClientDisconnected(Exception):
    """The client closed its connection: no response can be sent."""


async def cancel_on_disconnect(
    receive: Receive, work: Coroutine[Any, Any, T], discard: Callable[[T], object] = lambda result: None
) -> T:
    """The result of `work`, which is cancelled when the client disconnects. Raises `ClientDisconnected` then.

    `discard` is called with a result that comes too late, after a disconnect or a cancellation of this call. The
    request's body must have been read: the next message of `receive` is then the disconnect.
    """
    working = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(_disconnect(receive))
    delivered = False
    try:
        await asyncio.wait([working, disconnected], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnected
        disconnected.cancel()
        try:
            await disconnected
        except (Exception, asyncio.CancelledError) as exc:
            if is_own_cancellation(exc):
                raise
        delivered = True
        return working.result()
    finally:
        if not delivered:
            working.add_done_callback(lambda _: _discard(working, discard))
            working.cancel()
            disconnected.cancel()
            await asyncio.wait([working, disconnected])


def _discard(working: asyncio.Future[T], discard: Callable[[T], object]) -> None:
    if not working.cancelled() and working.exception() is None:
        discard(working.result())


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
