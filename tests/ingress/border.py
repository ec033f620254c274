"""The border between a channel's two ends, in one process: a deployment handle with one replica behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from typing import Any

from rbee_serve.multiplexing import Fragment, Part, SentRequest
from rbee_serve.replica.channel import Channels

Work = Callable[[dict[str, Any]], AsyncGenerator[Fragment, None]]


class Messages:
    """The answer to a call, as Ray Serve gives it: cancelling it stops the work, unless it has not been acknowledged;
    then it is lost."""

    def __init__(self, messages: AsyncGenerator[Any, None], *, hold: asyncio.Event | None = None) -> None:
        self.messages = messages
        self._hold = hold
        self.preloaded: Any = None
        self._reading: asyncio.Future[Any] | None = None
        self._acknowledged = self._cancelled = False

    def __aiter__(self) -> Messages:
        return self

    async def __anext__(self) -> Any:
        if self._hold is not None:
            await self._hold.wait()
        if self._cancelled:
            await self.messages.aclose()
            raise asyncio.CancelledError
        if self.preloaded is not None:
            message, self.preloaded = self.preloaded, None
            return message
        self._reading = asyncio.ensure_future(anext(self.messages))
        message = await self._reading
        self._acknowledged = True
        return message

    def cancel(self) -> None:
        self._cancelled = self._acknowledged
        if self._acknowledged and self._reading is not None:
            self._reading.cancel()


class Border:
    """A deployment handle with one replica behind it."""

    def __init__(self, work: Work) -> None:
        self.replica = Channels(work)
        self.groups: list[int] = []
        """How many requests each call held."""
        self.calls: list[Messages] = []
        self.hold: asyncio.Event | None = None
        self.message_sizes: list[int] = []

    def options(self, **options: Any) -> Border:
        return self

    def remote(self, channel: str, call: int, requests: list[SentRequest]) -> Messages:
        self.groups.append(len(requests))
        self.calls.append(Messages(self._respond(channel, call, requests), hold=self.hold))
        return self.calls[-1]

    async def _respond(
        self, channel: str, call: int, requests: list[SentRequest]
    ) -> AsyncGenerator[int | list[Part], None]:
        async for message in self.replica.respond(channel, call, requests):
            if isinstance(message, list):
                self.message_sizes.append(sum(len(part[1]) for part in message))
            yield message

    def broadcast(self, method: str, channel: str, left: Collection[int], read: Mapping[int, int]) -> Border:
        assert method == "control"
        self.replica.control(channel, left, read)
        return self

    async def results_async(self, *, return_exceptions: bool) -> list[None]:
        return []
