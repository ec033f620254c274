"""The border between an ingress and a replica, in one process: a deployment handle with one replica behind it, and a
real connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from rbee_serve.transport.acceptor import Endpoint
from rbee_serve.transport.request_messages import ResponseChunk
from rbee_serve.transport.request_server import RequestServer

Work = Callable[[dict[str, Any]], AsyncGenerator[ResponseChunk, None]]


async def soon(condition: Callable[[], bool]) -> None:
    """Return when it holds, which other tasks bring about without an event."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


class Call:
    """What Ray Serve gives for a call to `reach`. Cancelling it before it is answered does nothing."""

    def __init__(self, place: Callable[[], Any], hold: asyncio.Event | None) -> None:
        self._place = place
        self._hold = hold
        self._answered = False
        self.open = True

    def __aiter__(self) -> Call:
        return self

    async def __anext__(self) -> Endpoint:
        if self._hold is not None:
            await self._hold.wait()
        place: Endpoint = await self._place()
        self._answered = True
        return place

    def cancel(self) -> None:
        self.open = not self._answered


class Border:
    """A deployment handle with one replica behind it."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.replica = RequestServer(work)
        self.calls: list[Call] = []
        self.hold: asyncio.Event | None = None
        self._replaced: list[RequestServer] = []

    def options(self, **options: Any) -> Border:
        return self

    def remote(self, node_id: str) -> Call:
        self.calls.append(Call(self._place, self.hold))
        return self.calls[-1]

    async def _place(self) -> Endpoint:
        return await self.replica.entrance.place("127.0.0.1")

    @property
    def asked(self) -> int:
        """Requests that are worked on."""
        return sum(len(connection.tasks()) for connection in self.replica._open)

    @property
    def open_calls(self) -> int:
        """Calls that Ray Serve would count."""
        return sum(call.open for call in self.calls)

    def replace(self) -> None:
        """The replica dies, and there is another one."""
        for connection in list(self.replica._open):
            connection.wire._abort()
        self.replace_peacefully()

    def replace_peacefully(self) -> None:
        """There is another replica, to which Ray Serve sends."""
        self._replaced.append(self.replica)
        self.replica = RequestServer(self._work)

    async def close(self) -> None:
        """End everything."""
        for replica in (self.replica, *self._replaced):
            for connection in replica._open:
                for task in connection.tasks():
                    task.cancel()
            await replica.close(5)
            await soon(lambda replica=replica: not replica._open)  # type: ignore[misc]
        await asyncio.sleep(0.01)  # for the other ends to notice
