"""The replica's end of the connections: requests in, what their work has to say out.

What is said is told in `rbee_serve.transport.request_messages`.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from rbee_serve import correlation
from rbee_serve.errors import InternalError
from rbee_serve.transport.acceptor import Acceptor
from rbee_serve.transport.framing import FramedConnection
from rbee_serve.transport.refusal import refusal
from rbee_serve.transport.request_messages import (
    WINDOW_BYTES,
    Chunk,
    FromIngress,
    GoAway,
    RequestAck,
    ResetStream,
    ResponseChunk,
    StartRequest,
    WindowUpdate,
)

logger = logging.getLogger(__name__)

Answering = Callable[[dict[str, Any]], AsyncGenerator[ResponseChunk, None]]
"""From the fields of a request to the fragments of its answer, the last of which is terminal."""


class RequestServer:
    """Those of all ingresses."""

    def __init__(self, answer: Answering) -> None:
        self._answer = answer
        self._open: set[_ClientConnection] = set()
        self.entrance: Acceptor[FromIngress] = Acceptor(FromIngress, self._admit)
        """Where ingresses connect."""

    def _admit(self, wire: FramedConnection[FromIngress]) -> _ClientConnection:
        connection = _ClientConnection(wire, self._answer, self._open)
        self._open.add(connection)
        return connection

    async def close(self, within_s: float) -> None:
        """Take no more requests, and wait for those that are open, at most `within_s` seconds."""
        for connection in self._open:
            connection.say_closing()
        tasks = [task for connection in self._open for task in connection.tasks()]
        if tasks:
            await asyncio.wait(tasks, timeout=within_s)
        await self.entrance.close()
        for connection in list(self._open):
            connection.wire.close()


class _Stream:
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


class _ClientConnection:
    """One ingress, and its requests."""

    def __init__(self, wire: FramedConnection[FromIngress], answer: Answering, among: set[_ClientConnection]) -> None:
        self.wire = wire
        self._answer = answer
        self._among = among
        self._answers: dict[int, _Stream] = {}

    def tasks(self) -> list[asyncio.Task[None]]:
        """The work on its requests."""
        return [answer.task for answer in self._answers.values()]

    def say_closing(self) -> None:
        """Have new requests go elsewhere."""
        self.wire.send(GoAway())

    def receive(self, message: FromIngress) -> None:
        """See `ConnectionHandler`."""
        match message:
            case StartRequest(number, fields, correlation_id):
                self.wire.send(RequestAck(number))  # leaves before the work begins, which may keep the event loop busy
                answer = self._answers[number] = _Stream()
                answer.task = asyncio.create_task(self._run(number, answer, fields, correlation_id))
                answer.task.add_done_callback(lambda _: self._forget(number))
            case WindowUpdate(number, size) if number in self._answers:
                self._answers[number].read(size)
            case ResetStream(number) if number in self._answers:
                self._answers[number].task.cancel()

    def _forget(self, number: int) -> None:
        # A cancelled task holds the place where it stood, and that holds its answer: a circle, which Python finds late.
        del self._answers.pop(number).task

    def lost(self) -> None:
        """See `ConnectionHandler`. There is nobody any more who could hand an answer out."""
        self._among.discard(self)
        for task in self.tasks():
            task.cancel()

    async def _run(self, number: int, answer: _Stream, fields: bytes, correlation_id: str) -> None:
        correlation.enter(correlation_id)
        try:
            asked = pickle.loads(fields)  # noqa: S301  by our own ingress, which has shown the key
            async with aclosing(self._answer(asked)) as fragments:
                async for fragment in fragments:
                    self.wire.send(Chunk(number, *fragment))
                    data, terminal, *_ = fragment
                    if answer.sent(len(data)) and not terminal:
                        await answer.room.wait()
        except Exception:  # whatever it is, the ingress must hear of the end
            logger.exception("a request could not be answered")
            self.wire.send(Chunk(number, *refusal(InternalError("the worker's answer could not be sent"))))
