"""The way from the ingress to the replicas of one worker.

Ray Serve finds the replica; what is said to it goes over a connection, which stays open for all later requests. See
`rbee_serve.transport.request_messages`.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import pickle
from collections.abc import Callable, Coroutine
from typing import Any

from ray.serve.handle import DeploymentHandle

from rbee_serve.ray_boundary import SLOW_ACKNOWLEDGEMENT_S, cancel
from rbee_serve.transport.acceptor import Endpoint
from rbee_serve.transport.request_client import RequestClient
from rbee_serve.transport.request_messages import StartRequest
from rbee_serve.transport.response_stream import ResponseStream


class Channel:
    """Sends requests to a worker."""

    def __init__(
        self, handle: DeploymentHandle[Any], node_id: str, on_message: Callable[[], None], *, balanced: bool
    ) -> None:
        """`node_id` is Ray's name for this machine; `on_message` is called for whatever a replica says. `balanced`: Ray
        Serve chooses a replica for each request, and counts it there. Otherwise it is asked once, and again when that
        replica is gone."""
        self._reach = handle.options(
            stream=True, method_name="reach", request_serialization="pickle", response_serialization="pickle"
        )
        self._node_id = node_id
        self._on_message = on_message
        self._balanced = balanced
        self._numbers = itertools.count()
        self._connections: dict[str, asyncio.Task[RequestClient]] = {}
        """By the replica's key."""
        self._current: RequestClient | None = None
        """Where requests go, unless they are balanced."""
        self._waiting: dict[int, tuple[ResponseStream, StartRequest]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, fields: dict[str, Any], correlation_id: str) -> ResponseStream:
        """Send a request. Its answer is to be closed, whatever comes of it."""
        answer = ResponseStream()
        request = StartRequest(next(self._numbers), pickle.dumps(fields, pickle.HIGHEST_PROTOCOL), correlation_id)
        if self._balanced:
            self._start(self._send_balanced(answer, request))
        elif self._current is not None and self._current.usable:
            self._current.ask(answer, request)
        else:
            if not self._waiting:
                self._start(self._find())
            self._waiting[request.number] = (answer, request)
        return answer

    async def _find(self) -> None:
        """Find the replica, and send it what waits."""
        try:
            messages = aiter(self._reach.remote(self._node_id))
            self._current = await self._connection(await anext(messages))
            cancel(messages)
        except (Exception, asyncio.CancelledError) as exc:  # Serve raises the latter too, where the call was cancelled
            for answer, _ in self._take_waiting():
                answer.fail(_reason(exc))
            return
        for answer, request in self._take_waiting():
            if not answer.closed:
                self._current.ask(answer, request)

    def _take_waiting(self) -> list[tuple[ResponseStream, StartRequest]]:
        waiting, self._waiting = self._waiting, {}
        return list(waiting.values())

    async def _send_balanced(self, answer: ResponseStream, request: StartRequest) -> None:
        """A call to Serve is open as long as the request."""
        messages = aiter(self._reach.remote(self._node_id))
        try:
            # Serve loses a cancellation that comes while it hands the call to a replica: its answer is waited for.
            async with asyncio.timeout(SLOW_ACKNOWLEDGEMENT_S):
                connection = await self._connection(await anext(messages))
            if not answer.closed:
                connection.ask(answer, request)
            await answer.over
        except (Exception, asyncio.CancelledError) as exc:
            answer.fail(_reason(exc))
        cancel(messages)

    async def _connection(self, place: Endpoint) -> RequestClient:
        """The connection to that replica, which is opened if there is none. Raises `OSError`."""
        opening = self._connections.get(place.key)
        if opening is None or _is_over(opening):
            self._connections = {key: task for key, task in self._connections.items() if not _is_over(task)}
            opening = self._connections[place.key] = asyncio.create_task(self._open(place))
        return await asyncio.shield(opening)

    async def _open(self, place: Endpoint) -> RequestClient:
        connection = RequestClient(self._on_message)
        await connection.open(place)
        return connection

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        # In a context of its own: Serve counts a call as part of the request in whose context it is made.
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _is_over(opening: asyncio.Task[RequestClient]) -> bool:
    return opening.done() and (opening.exception() is not None or not opening.result().usable)


def _reason(exc: BaseException) -> Exception:
    return exc if isinstance(exc, Exception) else ConnectionError("the call was cancelled")
