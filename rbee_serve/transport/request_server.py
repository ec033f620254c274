"""The replica's end of its connections to ingresses: requests in, responses out.

See `rbee_serve.transport.request_messages`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any

from rbee_serve import correlation
from rbee_serve.errors import InferenceTimeout, InternalError, WorkerError
from rbee_serve.sse import DONE
from rbee_serve.transport.acceptor import Acceptor
from rbee_serve.transport.cancellation import is_own_cancellation
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

MAX_STALLED_READER_S = 30.0
MIN_READ_BYTES_PER_S = 16 * 1024
"""A client that is behind by more than the window has to take something within `MAX_STALLED_READER_S` and the time that
its unread bytes take at this rate. Otherwise its request ends with an error, because it holds a slot of its worker."""
GO_AWAY_S = 0.1
"""The time in which requests arrive that were sent before their ingress received `GoAway`."""

RequestHandler = Callable[[dict[str, Any]], AsyncGenerator[ResponseChunk, None]]
"""From the fields of a request to the chunks of its response, the last of which ends the stream."""


class RequestServer:
    """Serves the requests of all ingresses."""

    def __init__(self, handle: RequestHandler) -> None:
        self._handle = handle
        self._connections: set[_IngressConnection] = set()
        self._closing = False
        self.acceptor: Acceptor[FromIngress] = Acceptor(FromIngress, self._admit)
        """Where ingresses connect."""

    def _admit(self, connection: FramedConnection[FromIngress]) -> _IngressConnection:
        admitted = _IngressConnection(connection, self._handle, self._connections)
        self._connections.add(admitted)
        if self._closing:
            connection.send(GoAway())
        return admitted

    async def close(self, timeout_s: float) -> None:
        """Have the ingresses send new requests elsewhere, and wait for the open ones, at most `timeout_s` seconds."""
        self._closing = True
        for ingress in self._connections:
            ingress.connection.send(GoAway())
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.sleep(GO_AWAY_S)
                while tasks := [task for ingress in self._connections for task in ingress.tasks()]:
                    await asyncio.wait(tasks)
        await self.acceptor.close()
        for ingress in list(self._connections):
            ingress.connection.close()


class _Stream:
    """A request in work, and how many bytes its client is behind."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None]
        self.unread = 0
        self._taken = asyncio.Event()

    def sent(self, size: int) -> bool:
        """Count `size` sent bytes. Whether the window is now closed."""
        self.unread += size
        return self.unread > WINDOW_BYTES

    def taken(self, size: int) -> None:
        """Count `size` bytes that the client has taken."""
        self.unread -= size
        self._taken.set()

    async def opened(self) -> None:
        """Wait until the window is open. Raises `InferenceTimeout` if the client stops reading."""
        while self.unread > WINDOW_BYTES:
            self._taken.clear()
            try:
                async with asyncio.timeout(MAX_STALLED_READER_S + self.unread / MIN_READ_BYTES_PER_S):
                    await self._taken.wait()
            except TimeoutError:
                raise InferenceTimeout("the client stopped reading its response; read it while it arrives") from None


class _IngressConnection:
    """One ingress, and its requests."""

    def __init__(
        self,
        connection: FramedConnection[FromIngress],
        handle: RequestHandler,
        connections: set[_IngressConnection],
    ) -> None:
        self.connection = connection
        self._handle = handle
        self._connections = connections
        self._streams: dict[int, _Stream] = {}

    def tasks(self) -> list[asyncio.Task[None]]:
        """The work on its requests."""
        return [stream.task for stream in self._streams.values()]

    def receive(self, message: FromIngress) -> None:
        """See `ConnectionHandler`."""
        match message:
            case StartRequest(stream_id, fields, correlation_id):
                self.connection.send(RequestAck(stream_id))  # before the work, which may keep the event loop busy
                stream = self._streams[stream_id] = _Stream()
                stream.task = asyncio.create_task(self._run(stream_id, stream, fields, correlation_id))
                stream.task.add_done_callback(lambda _: self._forget(stream_id))
            case WindowUpdate(stream_id, size) if stream_id in self._streams:
                self._streams[stream_id].taken(size)
            case ResetStream(stream_id) if stream_id in self._streams:
                self._streams[stream_id].task.cancel()

    def _forget(self, stream_id: int) -> None:
        # A cancelled task holds its frame, which holds the stream: a cycle, which the garbage collector finds late.
        del self._streams.pop(stream_id).task

    def lost(self) -> None:
        """See `ConnectionHandler`. Cancels the requests: their responses can reach no client."""
        self._connections.discard(self)
        for task in self.tasks():
            task.cancel()

    async def _run(self, stream_id: int, stream: _Stream, fields: dict[str, Any], correlation_id: str) -> None:
        correlation.enter(correlation_id)
        chunk: ResponseChunk | None = None
        try:
            async with aclosing(self._handle(fields)) as chunks:
                async for chunk in chunks:
                    self.connection.send(Chunk(stream_id, *chunk))
                    data, end_of_stream, *_ = chunk
                    if stream.sent(len(data)) and not end_of_stream:
                        await stream.opened()
        except (Exception, asyncio.CancelledError) as exc:  # whatever it is, the ingress needs an end of the stream
            if is_own_cancellation(exc):
                raise
            if not isinstance(exc, WorkerError):
                logger.exception("a request failed outside of its backend")
                exc = InternalError("the worker's answer could not be sent")
            if chunk is None:
                self.connection.send(Chunk(stream_id, *refusal(exc)))
            elif not chunk[1]:
                data, end_of_stream, *_ = refusal(exc)
                self.connection.send(Chunk(stream_id, data + DONE, end_of_stream))
