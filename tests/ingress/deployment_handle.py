"""A deployment handle with one replica behind it, in one process, over a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from rbee_serve.transport.handshake import Endpoint
from rbee_serve.transport.request_messages import ResponseChunk
from rbee_serve.transport.request_server import RequestServer

Work = Callable[[dict[str, Any]], AsyncGenerator[ResponseChunk, None]]


async def soon(condition: Callable[[], bool]) -> None:
    """Return when it holds; other tasks make it hold without an event."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


class Call:
    """What Ray Serve returns for a call to `reach`. Cancelling it before it is answered does nothing."""

    def __init__(self, reach: Callable[[], Any], hold: asyncio.Event | None) -> None:
        self._reach = reach
        self._hold = hold
        self._answered = False
        self.open = True

    def __aiter__(self) -> Call:
        return self

    async def __anext__(self) -> Endpoint:
        if self._hold is not None:
            await self._hold.wait()
        endpoint: Endpoint = await self._reach()
        self._answered = True
        return endpoint

    def cancel(self) -> None:
        self.open = not self._answered


class Handle:
    """A deployment handle with one replica behind it."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.replica = RequestServer(work)
        self.calls: list[Call] = []
        self.hold: asyncio.Event | None = None
        self._replaced: list[RequestServer] = []

    def options(self, **options: Any) -> Handle:
        return self

    def remote(self, node_id: str) -> Call:
        self.calls.append(Call(self.reach, self.hold))
        return self.calls[-1]

    async def reach(self) -> Endpoint:
        return await self.replica.acceptor.endpoint("127.0.0.1")

    @property
    def running(self) -> int:
        """Requests in work."""
        return sum(len(connection.tasks()) for connection in self.replica._connections)

    @property
    def open_calls(self) -> int:
        """Calls that Ray Serve would count."""
        return sum(call.open for call in self.calls)

    def kill(self) -> None:
        """The replica dies, and there is another one."""
        for ingress in list(self.replica._connections):
            ingress.connection.abort("the replica dies")
        self.replace()

    def replace(self) -> None:
        """There is another replica, to which Ray Serve sends."""
        self._replaced.append(self.replica)
        self.replica = RequestServer(self._work)

    async def close(self) -> None:
        """End everything."""
        for replica in (self.replica, *self._replaced):
            for connection in replica._connections:
                for task in connection.tasks():
                    task.cancel()
            await replica.close(5)
            await soon(lambda replica=replica: not replica._connections)  # type: ignore[misc]
        await asyncio.sleep(0.01)  # for the other ends to notice
