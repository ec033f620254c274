"""The ingress's end of a channel: many requests to one worker, answered by the messages of few calls.

The protocol is told in `rbee_serve.multiplexing`.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import pickle
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from ray.serve.handle import DeploymentHandle

from rbee_serve.border import SLOW_ACKNOWLEDGEMENT_S, cancel
from rbee_serve.ingress.body import JSON
from rbee_serve.multiplexing import WINDOW_BYTES, Part, SentRequest
from rbee_serve.request import new_id

logger = logging.getLogger(__name__)

HOLD_S = 0.02
"""The longest that a request waits for others to go with, while an earlier call has not been acknowledged. One that
comes alone never waits."""

SMALL_BYTES = 64 * 1024
"""A larger request goes alone."""

GROUP = 64
"""So many requests go together at most."""


class Channel:
    """The way to the replicas of one worker."""

    def __init__(self, handle: DeploymentHandle[Any], on_message: Callable[[], None], *, grouped: bool) -> None:
        """`on_message` is called for whatever a replica sends. `grouped`: requests that come together go in one call,
        and so to one replica, which Ray Serve counts as one."""
        self._handle = handle
        self._respond = handle.options(
            stream=True, method_name="respond", request_serialization="pickle", response_serialization="pickle"
        )
        self._on_message = on_message
        self._group = GROUP if grouped else 1
        self._id = new_id("channel")
        self._numbers = itertools.count()
        self._answers: dict[int, Answer] = {}
        self._calls: dict[int, _Call] = {}
        self._pending: list[tuple[Answer, SentRequest]] = []
        self._holding: asyncio.Handle | None = None
        self._unacknowledged = 0
        self._left: list[int] = []
        self._read: dict[int, int] = {}
        self._telling = False
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, fields: dict[str, Any], correlation_id: str) -> Answer:
        """Send a request. Its answer is to be closed, whatever comes of it."""
        number = next(self._numbers)
        answer = self._answers[number] = Answer(self, number)
        request = (number, pickle.dumps(fields, pickle.HIGHEST_PROTOCOL), correlation_id)
        if self._group == 1 or len(request[1]) > SMALL_BYTES:
            self._call([(answer, request)])
            return answer
        self._pending.append((answer, request))
        if self._holding is None:
            loop = asyncio.get_running_loop()
            if self._unacknowledged:
                self._holding = loop.call_later(HOLD_S, self._release)
            else:
                self._holding = loop.call_soon(self._release)
        return answer

    def close(self, answer: Answer) -> None:
        """Stop the work on a request that is not complete, and forget it."""
        if self._answers.pop(answer.number, None) is None or answer.complete:
            return
        call = answer.call
        if call is None:
            self._pending = [(other, request) for other, request in self._pending if other is not answer]
            return
        call.open.pop(answer.number)
        call.left.append(answer.number)
        if call.acknowledged:
            self._leave(call)
        elif not call.open:
            # Serve loses a cancellation that comes while it hands the call to a replica: it waits for the
            # acknowledgement, unless that takes for ever.
            asyncio.get_running_loop().call_later(SLOW_ACKNOWLEDGEMENT_S, self._give_up, call)

    def note_read(self, answer: Answer, size: int) -> None:
        """The client has taken `size` bytes of an answer that goes on: the replica may send as much."""
        self._read[answer.number] = self._read.get(answer.number, 0) + size
        self._tell()

    def _release(self) -> None:
        if self._holding is not None:
            self._holding.cancel()
            self._holding = None
        while self._pending:
            group, self._pending = self._pending[: self._group], self._pending[self._group :]
            self._call(group)

    def _call(self, group: Iterable[tuple[Answer, SentRequest]]) -> None:
        call = _Call(next(self._numbers))
        for answer, _ in group:
            answer.call = call
            call.open[answer.number] = answer
        self._calls[call.number] = call
        self._unacknowledged += 1
        self._start(self._follow(call, [request for _, request in group]))

    async def _follow(self, call: _Call, requests: list[SentRequest]) -> None:
        """Read what a call has to say, to its end."""
        reason: Exception = StopAsyncIteration()
        try:
            call.messages = aiter(self._respond.remote(self._id, call.number, requests))
            self._acknowledge(call, await anext(call.messages))
            async for parts in call.messages:
                self._on_message()
                self._hand_out(parts)
        except (Exception, asyncio.CancelledError) as exc:  # Serve raises the latter too, where the call was cancelled
            reason = exc if isinstance(exc, Exception) else ConnectionError("the call was cancelled")
            for answer in list(call.open.values()):
                answer.fail(reason)
        finally:
            del self._calls[call.number]
            if not call.acknowledged:
                self._note_acknowledgement()
            for answer in list(self._answers.values()) if call.carries else ():
                if answer.carrier == call.number:
                    answer.fail(reason)

    def _acknowledge(self, call: _Call, carrier: int) -> None:
        call.acknowledged = True
        call.carries = carrier == call.number
        self._on_message()
        self._note_acknowledgement()
        for answer in list(call.open.values()):
            answer.acknowledge(carrier)
            if carrier not in self._calls:
                answer.fail(StopAsyncIteration())
        if call.left:
            self._leave(call)

    def _note_acknowledgement(self) -> None:
        self._unacknowledged -= 1
        if self._pending:
            self._release()

    def _hand_out(self, parts: list[Part]) -> None:
        for part in parts:
            if answer := self._answers.get(part[0]):
                answer.put(part[1], part[2], part[3] if len(part) == 4 else JSON)

    def _leave(self, call: _Call) -> None:
        """Tell the replica of those that have left. A call that carries nothing and has nobody left is cancelled."""
        if call.open or call.carries:
            self._left += call.left
            call.left = []
            self._tell()
        else:
            call.cancel()

    def _give_up(self, call: _Call) -> None:
        if not call.acknowledged:
            call.cancel()

    def _tell(self) -> None:
        if not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_soon(lambda: self._start(self._control()))

    async def _control(self) -> None:
        """To all replicas, as a handle cannot name one: those that do not know the channel do nothing."""
        self._telling = False
        left, self._left = self._left, []
        read, self._read = self._read, {}
        try:
            await self._handle.broadcast("control", self._id, left, read).results_async(return_exceptions=True)
        except Exception as exc:
            logger.warning("a worker could not be told of clients that left: %s", type(exc).__name__)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        # In a context of its own: Serve counts a call as part of the request in whose context it is made.
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Call:
    """A call to a replica, and those of its requests that are not complete."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.messages: Any = None
        self.open: dict[int, Answer] = {}
        self.left: list[int] = []
        self.acknowledged = self.carries = False

    def cancel(self) -> None:
        """Stop the work on its requests, and on all of the channel at its replica if it carries."""
        cancel(self.messages)


class Answer:
    """What comes back for one request."""

    def __init__(self, channel: Channel, number: int) -> None:
        self.number = number
        self.call: _Call | None = None
        self.carrier: int | None = None
        """The number of the call on which it comes."""
        self.complete = False
        """Whether its last fragment has come; or the border has broken before."""
        self.media_type = JSON
        """The content type, if it is a document."""
        self.acknowledged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when a replica has noted the request; fails if the border breaks before."""
        self._channel = channel
        self._data: list[bytes] = []
        self._failure: Exception | None = None
        self._news: asyncio.Future[None] | None = None
        self._taken = 0

    def acknowledge(self, carrier: int) -> None:
        """A replica has noted the request; the answer comes on that call."""
        self.carrier = carrier
        self._note()

    def put(self, data: bytes, terminal: bool, media_type: str = JSON) -> None:
        """Add a fragment. It may come before the acknowledgement, which another call brings."""
        self._note()
        self._data.append(data)
        if terminal:
            self._end()
            self.media_type = media_type
        self._wake()

    def fail(self, reason: Exception) -> None:
        """The border has broken: nothing more comes. Does nothing if the answer is complete."""
        if self.complete:
            return
        self._failure = reason
        self._end()
        if not self.acknowledged.done():
            self.acknowledged.set_exception(reason)
            self.acknowledged.exception()  # looked at, should nobody wait for it any more
        self._wake()

    async def next(self) -> tuple[bytes, bool]:
        """All that has come since the last time, and whether the end is among it; waits for something.

        Raises what broke the border, once everything before it has been taken.
        """
        if self._taken > WINDOW_BYTES // 2 and not self.complete:
            self._channel.note_read(self, self._taken)
            self._taken = 0
        while not self._data:
            if self._failure is not None:
                raise self._failure
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        data = b"".join(self._data)
        self._data.clear()
        self._taken += len(data)
        return data, self.complete and self._failure is None

    def close(self) -> None:
        """Stop the work, if it is not complete."""
        self._channel.close(self)

    def _note(self) -> None:
        if not self.acknowledged.done():
            self.acknowledged.set_result(None)

    def _end(self) -> None:
        self.complete = True
        if self.call is not None:
            self.call.open.pop(self.number, None)

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
