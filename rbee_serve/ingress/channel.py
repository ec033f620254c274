"""From the ingress to the replicas of one worker.

Ray Serve chooses the replica; requests then go over a connection to it, which stays open for all later ones. See
`rbee_serve.transport.request_messages`.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from ray.serve.handle import DeploymentHandle

from rbee_serve.ray_boundary import UNANSWERED_CALL_S, cancel
from rbee_serve.transport.client_connection import OnDemand
from rbee_serve.transport.handshake import Endpoint
from rbee_serve.transport.request_client import RequestClient
from rbee_serve.transport.request_messages import StartRequest
from rbee_serve.transport.response_stream import ResponseStream


class Channel:
    """Sends requests to a worker."""

    def __init__(self, handle: DeploymentHandle[Any], node_id: str, *, balanced: bool) -> None:
        """`node_id` is Ray's name for this machine. `balanced`: Ray Serve chooses a replica for each request, and
        counts it there. Otherwise it chooses once, and again when that replica is gone."""
        self._reach = handle.options(
            stream=True, method_name="reach", request_serialization="pickle", response_serialization="pickle"
        )
        self._node_id = node_id
        self._balanced = balanced
        self._stream_ids = itertools.count()
        self._connections: dict[Endpoint, OnDemand[RequestClient]] = {}
        self._current: RequestClient | None = None
        """The connection for all requests, unless they are balanced."""
        self._waiting: dict[int, tuple[ResponseStream, StartRequest]] = {}
        """Requests for which no replica has been found yet, by stream id."""
        self._finding = False
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, fields: dict[str, Any], correlation_id: str) -> ResponseStream:
        """Send a request. The response is to be closed, however it ends."""
        response = ResponseStream()
        request = StartRequest(next(self._stream_ids), fields, correlation_id)
        if self._balanced:
            self._start(self._send_balanced(response, request))
        elif self._current is not None and self._current.usable:
            self._current.start(response, request)
        else:
            self._wait(response, request)
        return response

    def _wait(self, response: ResponseStream, request: StartRequest) -> None:
        stream_id = request.stream_id
        self._waiting[stream_id] = (response, request)
        response.attach(reset=lambda: self._stop_waiting(stream_id), update_window=lambda size: None)
        if not self._finding:
            self._finding = True
            self._start(self._find())

    def _stop_waiting(self, stream_id: int) -> None:
        self._waiting.pop(stream_id, None)

    async def _find(self) -> None:
        """Find a replica, and send it the waiting requests."""
        try:
            async with self._replica() as connection:
                self._current = connection
        except (Exception, asyncio.CancelledError) as exc:  # Serve raises the latter too, where the call was cancelled
            for response, _ in self._take_waiting():
                response.fail(_reason(exc))
        else:
            for response, request in self._take_waiting():
                self._current.start(response, request)

    def _take_waiting(self) -> list[tuple[ResponseStream, StartRequest]]:
        self._finding = False
        waiting, self._waiting = self._waiting, {}
        return list(waiting.values())

    async def _send_balanced(self, response: ResponseStream, request: StartRequest) -> None:
        """A call to Serve is open as long as the request."""
        try:
            async with self._replica() as connection:
                if not response.closed:
                    connection.start(response, request)
                await response.over
        except (Exception, asyncio.CancelledError) as exc:
            response.fail(_reason(exc))

    @asynccontextmanager
    async def _replica(self) -> AsyncIterator[RequestClient]:
        """The connection to a replica that Ray Serve chooses. The call to Serve is open until the context is left.
        Raises `OSError` and what Serve raises."""
        messages = aiter(self._reach.remote(self._node_id))
        try:
            # Serve loses a cancellation that comes while it hands the call to a replica: its answer is awaited.
            async with asyncio.timeout(UNANSWERED_CALL_S):
                connection = await self._connection(await anext(messages))
            yield connection
        finally:
            cancel(messages)

    async def _connection(self, endpoint: Endpoint) -> RequestClient:
        """The connection to that replica, which is opened if there is none. Raises `OSError`."""
        connection = self._connections.get(endpoint)
        if connection is None:
            self._connections = {key: known for key, known in self._connections.items() if not known.is_over}
            connection = self._connections[endpoint] = OnDemand(lambda: _open(endpoint))
        return await connection.get()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        # In a context of its own: Serve counts a call as part of the request in whose context it is made.
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _open(endpoint: Endpoint) -> RequestClient:
    connection = RequestClient()
    await connection.open(endpoint)
    return connection


def _reason(exc: BaseException) -> Exception:
    return exc if isinstance(exc, Exception) else ConnectionError("the call was cancelled")
