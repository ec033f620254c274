"""From the ingress to a worker replica and back.

Arrow by arrow:

    Channel.send ─→ acknowledgement      none in time → `WorkerLost` (503); the work is stopped
                 ─→ first data           a lone `error` frame → that error, as an HTTP status
                 ─→ further data         the border breaks → an `error` event `WORKER_LOST` and the marker, unless
                                         the end has gone already
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Container, Mapping
from functools import partial
from typing import Any

import msgspec
from ray.serve.handle import DeploymentHandle

from rbee_serve.errors import WorkerError, WorkerLost, WorkerStopping, error_from_json
from rbee_serve.events import Error, to_json
from rbee_serve.ingress.channel import Channel
from rbee_serve.ray_boundary import SLOW_ACKNOWLEDGEMENT_S, error_from_ray
from rbee_serve.request import InferenceRequest
from rbee_serve.sse import DONE, KEEP_ALIVE, frame
from rbee_serve.transport.response_stream import ResponseStream

_PROBE_AFTER = 0.75
"""The part of the time for an acknowledgement after which a replica that was silent for as long counts as gone. It
pushes its state to the hub twice a second; the hub's answer is there when the time is over."""

GRACE_S = 1.5
"""The longest silence of a replica that has shown life since the request went out, or that has just come up: Serve may
still have to find it, and a machine that starts models is busy."""

ASK_AGAIN_S = 0.5
HUB_ANSWERS_S = 5.0
"""A hub that takes longer cannot vouch for anybody. Its answer comes the way of all others, behind hundreds of requests
if there are so many; one that is idle takes milliseconds."""

KEEP_ALIVE_S = 10.0
"""A comment line is sent after this many seconds of silence."""

_ERROR_FRAME = b'data: {"type":"error"'


class UpstreamResponse:
    """An answer whose first data is here. Close it, read or unread: closing cancels the work. Until then it is `among`
    those that are open."""

    def __init__(
        self, worker_id: str, answer: ResponseStream, first: tuple[bytes, bool], among: set[UpstreamResponse]
    ) -> None:
        self._worker_id = worker_id
        self._answer = answer
        self._among = among
        self.first, self.complete = first
        among.add(self)

    @property
    def media_type(self) -> str:
        """The content type, if the answer is a document."""
        return self._answer.media_type

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The SSE frames, as they come, to the marker; comments in long silences. A break of the border becomes an
        `error` event."""
        yield self.first
        while not self.complete:
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    data, self.complete = await self._answer.next()
            except TimeoutError:
                data = KEEP_ALIVE
            except Exception as exc:  # a StopAsyncIteration before the end is a break too
                data = frame(to_json(Error.from_exception(error_from_ray(exc, self._worker_id)))) + DONE
                self.complete = True
            yield data

    def cut(self) -> None:
        """Stop the work; the stream ends with an `error` event that says why."""
        self._answer.close()
        self._answer.fail(_stopping())

    def close(self) -> None:
        """Stop the work if it is not done."""
        self._among.discard(self)
        self._answer.close()


class Router:
    """Holds a channel to each worker."""

    def __init__(
        self,
        handles: Mapping[str, DeploymentHandle[Any]],
        acknowledge_timeout_s: float,
        seconds_since_last_push: Callable[[str], Awaitable[float]],
        recently_started: Callable[[str, float], bool],
        *,
        node_id: str = "",
        balanced: Container[str] = (),
    ) -> None:
        """`seconds_since_last_push(worker_id)` asks the hub how long ago a replica of the worker last showed life;
        `recently_started` tells
        whether one has just come up and nothing was heard from the worker since a time, so that Serve may need a moment
        to find it. `node_id` is Ray's name for this machine. For each request to the workers in `balanced` Serve
        chooses a replica."""
        self._acknowledge_timeout_s = acknowledge_timeout_s
        self._silence_s = seconds_since_last_push
        self._is_fresh = recently_started
        self._open: set[UpstreamResponse] = set()
        self._heard_at: dict[str, float] = {}
        """When a replica of a worker last sent anything."""
        self._questions: dict[str, asyncio.Future[float]] = {}
        """What the hub has been asked and has not answered yet: hundreds of requests that wait ask once."""
        self._channels = {
            worker_id: Channel(handle, node_id, partial(self._mark_seen, worker_id), balanced=worker_id in balanced)
            for worker_id, handle in handles.items()
        }

    async def send(self, worker_id: str, request: InferenceRequest, correlation_id: str) -> UpstreamResponse:
        """Hand a validated request to a replica and wait for the beginning of its answer.

        Raises the `WorkerError` with which the replica refused it, or `WorkerLost` if no replica noted it in time.
        """
        answer = self._channels[worker_id].send(request.model_dump(exclude_unset=True), correlation_id)
        try:
            await self._acknowledged(worker_id, answer.acknowledged)
            first, complete = await answer.next()
        except BaseException as exc:
            answer.close()
            if isinstance(exc, Exception):
                raise error_from_ray(exc, worker_id) from exc
            raise
        if complete and first.startswith(_ERROR_FRAME):
            answer.close()
            raise _refusal(first)
        return UpstreamResponse(worker_id, answer, (first, complete), self._open)

    def cut(self) -> None:
        """End every open stream: the server is being shut down and has waited long enough."""
        for reply in list(self._open):
            reply.cut()

    async def _acknowledged(self, worker_id: str, first: asyncio.Future[None]) -> None:
        doubt_s = self._acknowledge_timeout_s * _PROBE_AFTER
        give_up_at = time.monotonic() + SLOW_ACKNOWLEDGEMENT_S
        await asyncio.wait([first], timeout=doubt_s)
        seconds_since_last_push = (
            GRACE_S if self._is_fresh(worker_id, self._heard_at.get(worker_id, -math.inf)) else doubt_s
        )
        while (
            not first.done()
            and time.monotonic() < give_up_at
            and await self._is_alive(worker_id, seconds_since_last_push)
        ):
            await asyncio.wait([first], timeout=ASK_AGAIN_S)
            seconds_since_last_push = GRACE_S
        if not first.done():
            raise WorkerLost(f"worker {worker_id} does not answer; it is being replaced, try again in a moment")
        first.result()

    def _mark_seen(self, worker_id: str) -> None:
        self._heard_at[worker_id] = time.monotonic()

    async def _is_alive(self, worker_id: str, seconds_since_last_push: float) -> bool:
        """Whether a replica of the worker has sent anything, here or to the hub, within `seconds_since_last_push`
        seconds."""
        if time.monotonic() - self._heard_at.get(worker_id, -seconds_since_last_push) < seconds_since_last_push:
            return True
        question = self._questions.get(worker_id)
        if question is None:
            question = self._questions[worker_id] = asyncio.create_task(self._ask(worker_id))
            question.add_done_callback(lambda answered: self._questions.pop(worker_id))
        await asyncio.wait([question], timeout=HUB_ANSWERS_S)
        return question.done() and not question.cancelled() and question.result() < seconds_since_last_push

    async def _ask(self, worker_id: str) -> float:
        try:
            return await self._silence_s(worker_id)
        except Exception:
            return math.inf


def _stopping() -> WorkerError:
    return WorkerStopping("the server is being shut down and could not wait for this request any longer")


def _refusal(message: bytes) -> WorkerError:
    return error_from_json(msgspec.json.decode(message.removeprefix(b"data: ").partition(b"\n")[0]))
