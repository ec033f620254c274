"""The replica's end of the channels: many requests answered by the messages of one call.

The protocol is told in `rbee_serve.multiplexing`.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any

from rbee_serve import correlation
from rbee_serve.errors import InternalError
from rbee_serve.multiplexing import WINDOW_BYTES, Fragment, Part, SentRequest
from rbee_serve.replica.event_stream import refusal

logger = logging.getLogger(__name__)

MESSAGE_BYTES = 32 * 1024
"""Where messages are cut; from PERFORMANCE measurements, 16 to 32 KB."""

CATCH_UP_S = 0.005
"""The longest that parts are held back to travel with later ones, on a channel that is behind already."""

Answering = Callable[[dict[str, Any]], AsyncGenerator[Fragment, None]]
"""From the fields of a request to the fragments of its answer, the last of which is terminal."""


class Channels:
    """Those of all ingresses that have requests open here."""

    def __init__(self, answer: Answering) -> None:
        self._answer = answer
        self._channels: dict[str, _Channel] = {}

    async def respond(
        self, channel_id: str, call: int, requests: Collection[SentRequest]
    ) -> AsyncGenerator[int | list[Part], None]:
        """Work on `requests`: the number of the call that carries the answers, and on that call the answers.

        Closing it stops the work on `requests`, and on all of the channel if it carries.
        """
        channel = self._channels.get(channel_id)
        carries = channel is None
        if channel is None:
            channel = self._channels[channel_id] = _Channel(call)
        numbers = [number for number, *_ in requests]
        try:
            with channel.expecting():
                yield channel.carrier  # before the work, which may keep the event loop busy
                for number, fields, correlation_id in requests:
                    asked = pickle.loads(fields)  # noqa: S301  by our own ingress, as everything that crosses here is
                    channel.begin(number, self._answer(asked), correlation_id)
            if carries:
                while channel.is_open:
                    if parts := await channel.take():
                        yield parts
            else:
                await channel.ended(numbers)
        finally:
            if carries:
                del self._channels[channel_id]
                channel.close()
            else:
                channel.leave(numbers)

    def control(self, channel_id: str, left: Collection[int], read: Mapping[int, int]) -> None:
        """Stop the work on the requests in `left`; of those in `read` the client has taken so many bytes more."""
        if channel := self._channels.get(channel_id):
            channel.leave(left)
            channel.allow(read)


class _Answer:
    """A request that is worked on, and how far its client is behind."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None]
        self.unread = 0
        self.room = asyncio.Event()

    def sent(self, size: int) -> bool:
        """Note `size` bytes. Whether the client is too far behind for more."""
        self.unread += size
        if self.unread <= WINDOW_BYTES:
            return False
        self.room.clear()
        return True

    def read(self, size: int) -> None:
        """Note that the client has taken `size` bytes."""
        self.unread -= size
        if self.unread <= WINDOW_BYTES:
            self.room.set()


class _Channel:
    """The requests of one ingress, and what they have to say."""

    def __init__(self, carrier: int) -> None:
        self.carrier = carrier
        self._answers: dict[int, _Answer] = {}
        self._parts: deque[Part] = deque()
        self._bytes = 0
        self._taken = 0
        self._expected = 0
        self._changed = asyncio.Event()

    @property
    def is_open(self) -> bool:
        """Whether anything is worked on, or about to be, or waits to be taken."""
        return bool(self._answers or self._parts or self._expected)

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """While the block runs, requests are about to begin."""
        self._expected += 1
        try:
            yield
        finally:
            self._expected -= 1
            self._changed.set()

    def begin(self, number: int, fragments: AsyncGenerator[Fragment, None], correlation_id: str) -> None:
        """Work on a request."""
        answer = self._answers[number] = _Answer()
        answer.task = asyncio.create_task(self._run(number, answer, fragments, correlation_id))
        answer.task.add_done_callback(lambda _: self._end(number))

    async def _run(
        self, number: int, answer: _Answer, fragments: AsyncGenerator[Fragment, None], correlation_id: str
    ) -> None:
        correlation.enter(correlation_id)
        try:
            async with aclosing(fragments):
                async for fragment in fragments:
                    self._put((number, *fragment))
                    data, terminal, *_ = fragment
                    if answer.sent(len(data)) and not terminal:
                        await answer.room.wait()
        except Exception:  # whatever it is, the ingress must hear of the end
            logger.exception("a request could not be answered")
            self._put((number, *refusal(InternalError("the worker's answer could not be sent"))))

    def _end(self, number: int) -> None:
        del self._answers[number]
        self._changed.set()

    def _put(self, part: Part) -> None:
        self._parts.append(part)
        self._bytes += len(part[1])
        self._changed.set()

    async def take(self) -> list[Part]:
        """Everything that is ready, up to `MESSAGE_BYTES`, with what belongs to one request in one part. Empty if the
        last request has left."""
        if not self._parts:
            self._changed.clear()
            await self._changed.wait()
        await self._catch_up()
        data: dict[int, list[bytes]] = {}
        ends: dict[int, tuple[Any, ...]] = {}
        count = size = 0
        while self._parts and (not count or size + len(self._parts[0][1]) <= MESSAGE_BYTES):
            number, piece, *end = self._parts.popleft()
            data.setdefault(number, []).append(piece)
            ends[number] = (*end,)
            count, size = count + 1, size + len(piece)
        self._taken = count
        self._bytes -= size
        return [(number, b"".join(pieces), *ends[number]) for number, pieces in data.items()]

    async def _catch_up(self) -> None:
        """Let the requests go on for a few turns of the loop, if the last message held several parts: the border is
        slower than they are then, and its cost is by the message."""
        if self._taken < 2:
            return
        latest = time.monotonic() + CATCH_UP_S
        for _ in range(2 * self._taken):
            if not self._answers or self._bytes >= MESSAGE_BYTES or time.monotonic() > latest:
                return
            await asyncio.sleep(0)

    async def ended(self, numbers: Collection[int]) -> None:
        """Return when these are no longer worked on."""
        if tasks := self._tasks(numbers):
            await asyncio.wait(tasks)

    def leave(self, numbers: Collection[int]) -> None:
        """Stop the work on these, and drop what they had to say."""
        for task in self._tasks(numbers):
            task.cancel()

    def allow(self, read: Mapping[int, int]) -> None:
        """Note how many bytes more the clients of these have taken."""
        for number, size in read.items():
            if answer := self._answers.get(number):
                answer.read(size)

    def close(self) -> None:
        """Stop all work: there is no call any more that could carry an answer."""
        self.leave(list(self._answers))

    def _tasks(self, numbers: Collection[int]) -> list[asyncio.Task[None]]:
        return [self._answers[number].task for number in numbers if number in self._answers]
