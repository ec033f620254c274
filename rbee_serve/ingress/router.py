"""From the ingress to a worker replica and back.

Arrow by arrow:

    Channel.send ─→ acknowledgement      none in time, or no replica left → `WorkerLost` (503); the request is cancelled
                 ─→ first data           a lone `error` frame → that error, as an HTTP status
                 ─→ further data         the connection breaks → an `error` event `WORKER_LOST` and the marker, unless
                                         the end of the stream is here already
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Container, Mapping
from typing import Any

from ray.serve.handle import DeploymentHandle

from rbee_serve.errors import WorkerError, WorkerLost, WorkerStopping
from rbee_serve.events import Error, to_json
from rbee_serve.ingress.channel import Channel
from rbee_serve.ray_boundary import error_from_ray
from rbee_serve.request import InferenceRequest
from rbee_serve.sse import DONE, KEEP_ALIVE, frame
from rbee_serve.transport.refusal import refused
from rbee_serve.transport.response_stream import ResponseStream

KEEP_ALIVE_S = 10.0
"""A stream without data for this long gets a comment line."""


class UpstreamResponse:
    """A response whose first data is here. To be closed, read or unread: closing cancels the request."""

    def __init__(
        self, worker_id: str, stream: ResponseStream, first: tuple[bytes, bool], open_responses: set[UpstreamResponse]
    ) -> None:
        """It is in `open_responses` until it is closed."""
        self._worker_id = worker_id
        self._stream = stream
        self._open_responses = open_responses
        self.first, self.complete = first
        open_responses.add(self)

    @property
    def media_type(self) -> str:
        """The content type, if the response is a document."""
        return self._stream.media_type

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The SSE frames, as they arrive, to the marker; comments while there are none. A broken connection becomes an
        `error` event."""
        yield self.first
        while not self.complete:
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    data, self.complete = await self._stream.next()
            except TimeoutError:
                data = KEEP_ALIVE
            except Exception as exc:  # a StopAsyncIteration before the end is a failure too
                data = frame(to_json(Error.from_exception(error_from_ray(exc, self._worker_id)))) + DONE
                self.complete = True
            yield data

    def abort(self) -> None:
        """Cancel the request; the stream ends with an `error` event that gives the reason."""
        self._stream.abort(_stopping())

    def close(self) -> None:
        """Cancel the request if it is not done."""
        self._open_responses.discard(self)
        self._stream.close()


class Router:
    """Holds a channel to each worker."""

    def __init__(
        self,
        handles: Mapping[str, DeploymentHandle[Any]],
        acknowledge_timeout_s: float,
        *,
        node_id: str = "",
        balanced: Container[str] = (),
    ) -> None:
        """`node_id` is Ray's name for this machine. For each request to the workers in `balanced` Serve chooses a
        replica."""
        self._acknowledge_timeout_s = acknowledge_timeout_s
        self._channels = {
            worker_id: Channel(handle, node_id, balanced=worker_id in balanced) for worker_id, handle in handles.items()
        }
        self._unacknowledged: dict[str, set[ResponseStream]] = {worker_id: set() for worker_id in handles}
        self._starting: set[ResponseStream] = set()
        """Requests without first data."""
        self._open: set[UpstreamResponse] = set()

    async def send(self, worker_id: str, request: InferenceRequest, correlation_id: str) -> UpstreamResponse:
        """Send a checked request to the worker; the response with its first data.

        Raises the `WorkerError` with which the replica refused it; `WorkerLost` if no replica acknowledged it in time.
        """
        stream = self._channels[worker_id].send(request.model_dump(exclude_unset=True), correlation_id)
        self._starting.add(stream)
        try:
            await self._acknowledged(worker_id, stream)
            first, complete = await stream.next()
        except BaseException as exc:
            stream.close()
            if isinstance(exc, WorkerError) or not isinstance(exc, Exception):
                raise
            raise error_from_ray(exc, worker_id) from exc
        finally:
            self._starting.discard(stream)
        if refusal := refused(first, complete):
            stream.close()
            raise refusal
        return UpstreamResponse(worker_id, stream, (first, complete), self._open)

    def fail_unacknowledged(self, worker_id: str) -> None:
        """No replica of the worker serves any more: end the requests that none has acknowledged."""
        for stream in list(self._unacknowledged.get(worker_id, ())):
            stream.abort(_lost(worker_id))

    def abort(self) -> None:
        """End every request: the server is being shut down and has waited long enough."""
        for stream in list(self._starting):
            stream.abort(_stopping())
        for response in list(self._open):
            response.abort()

    async def _acknowledged(self, worker_id: str, stream: ResponseStream) -> None:
        unacknowledged = self._unacknowledged[worker_id]
        unacknowledged.add(stream)
        try:
            async with asyncio.timeout(self._acknowledge_timeout_s):
                await stream.acknowledged
        except TimeoutError:
            raise _lost(worker_id) from None
        finally:
            unacknowledged.discard(stream)


def _lost(worker_id: str) -> WorkerError:
    return WorkerLost(f"worker {worker_id} does not answer; it is being replaced, try again in a moment")


def _stopping() -> WorkerError:
    return WorkerStopping("the server is being shut down and could not wait for this request any longer")
