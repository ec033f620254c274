"""A typed HTTP client of a running rbee-serve, in two forms.

    with Client("http://127.0.0.1:8000") as client:
        with client.stream("llm", prompt="Once", max_tokens=32) as events:
            for event in events:
                ...
        print(client.infer("llm", prompt="Once")["text"])

`AsyncClient` has the same methods, to be awaited. What the server reports is raised as the `WorkerError` of that code,
with its violations; a server that cannot be reached or breaks off is `WorkerLost`, one that is silent too long
`InferenceTimeout`, a token that it refuses `Unauthorized`.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from typing import Any, Self, TypeVar

import httpx

from rbee_serve.client import calls
from rbee_serve.client.calls import Call, Fields, Patience, StreamReader, Unauthorized
from rbee_serve.errors import InferenceTimeout, WorkerLost
from rbee_serve.events import Event
from rbee_serve.outputs import OutputValue
from rbee_serve.result import EncodedResult
from rbee_serve.state import LoadProgress

__all__ = ["AsyncClient", "Client", "Unauthorized"]

T = TypeVar("T")


@contextmanager
def _translated() -> Iterator[None]:
    """The one place where httpx's exceptions become ours."""
    try:
        yield
    except httpx.TimeoutException as exc:
        raise InferenceTimeout("the server did not answer in time") from exc
    except httpx.TransportError as exc:
        raise WorkerLost("the connection to the server failed") from exc


class _Base(ABC):
    """What both clients are made of. `timeout` is the longest silence in seconds, also within a stream, where the
    server sends something at least every 10 s; only `infer` and `infer_file` wait without an end, as the server is
    silent until the result is there. `outputs` are the output classes to expect beside `TokenOutput`."""

    def __init__(
        self,
        base_url: str,
        token: str | None = None,
        timeout: float = 30.0,
        outputs: Sequence[type[OutputValue]] = (),
    ) -> None:
        self._outputs = tuple(outputs)
        self._timeout = timeout
        self._open(base_url=base_url, headers={} if token is None else {"Authorization": f"Bearer {token}"})

    @abstractmethod
    def _open(self, **options: Any) -> None: ...

    def _arguments(self, call: Call) -> dict[str, Any]:
        return {
            "method": call.method,
            "url": call.path,
            "content": call.body,
            "headers": {} if call.body is None else {"Content-Type": "application/json"},
            "timeout": httpx.Timeout(self._timeout, read=None) if call.patient else self._timeout,
        }


class Client(_Base):
    """The blocking client."""

    _http: httpx.Client

    def _open(self, **options: Any) -> None:
        self._http = httpx.Client(**options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    @contextmanager
    def stream(self, worker: str | None, request: Fields = None, /, **fields: Any) -> Iterator[Iterator[Event[Any]]]:
        """The events of one inference, as they come. Leaving the `with` closes the connection, and the work stops.

        A fault within the stream is an `Error` event; a refusal before it is raised. With None for `worker` the
        server chooses by the field `model` or `worker`.
        """
        call = calls.inference(worker, request, fields, stream=True)
        with closing(self._read(call, calls.event_reader(self._outputs))) as events:
            yield events

    def infer(self, worker: str | None, request: Fields = None, /, **fields: Any) -> dict[str, Any]:
        """The result of one inference as one object: joined outputs, the numbers of `end`, and metrics."""
        return self._ask(calls.inference(worker, request, fields, stream=False))

    def infer_file(self, worker: str | None, request: Fields = None, /, **fields: Any) -> EncodedResult:
        """The result of one inference as a file, such as `audio/wav`: its bytes and their content type."""
        call = calls.inference(worker, request, fields, stream=False)
        response = self._send(call)
        return call.encoded_result(response.status_code, response.content, response.headers.get("content-type", ""))

    def ready(self, worker: str | None = None) -> dict[str, Any]:
        """Whether the worker is ready, or all are. Being not ready is an answer and not an error."""
        return self._ask(calls.ready(worker))

    def health(self, worker: str | None = None) -> dict[str, Any]:
        """`{"status": "healthy" | "unhealthy", …}` of the worker, or of the server."""
        return self._ask(calls.health(worker))

    def info(self, worker: str) -> dict[str, Any]:
        """The worker's `/info`."""
        return self._ask(calls.info(worker))

    def workers(self) -> list[dict[str, Any]]:
        """All workers with their capabilities and limits."""
        return list(self._ask(calls.workers())["workers"])

    @contextmanager
    def loading_progress(self, worker: str) -> Iterator[Iterator[LoadProgress]]:
        """How far the load is, as it goes on. Raises `WorkerUnhealthy` if nothing is loading or the load fails."""
        with closing(self._read(calls.loading_progress(worker), calls.progress_reader())) as progress:
            yield progress

    def wait_until_ready(self, timeout_s: float = 600.0, worker: str | None = None) -> None:
        """Return when the worker is ready, or all are; the server need not be up yet. Raises `WorkerLoading`."""
        patience = Patience(timeout_s)
        while True:
            try:
                seen = self.ready(worker)
                if seen["ready"]:
                    return
                pause = patience.pause(seen)
            except (WorkerLost, InferenceTimeout) as exc:
                pause = patience.pause(exc)
            time.sleep(pause)

    def _ask(self, call: Call) -> dict[str, Any]:
        response = self._send(call)
        return call.answer(response.status_code, response.content)

    def _send(self, call: Call) -> httpx.Response:
        with _translated():
            return self._http.request(**self._arguments(call))

    def _read(self, call: Call, reader: StreamReader[T]) -> Generator[T, None, None]:
        with _translated(), self._http.stream(**self._arguments(call)) as response:
            if response.status_code != 200:
                raise calls.error_of(response.status_code, response.read())
            for chunk in response.iter_bytes():
                yield from reader.feed(chunk)
                if reader.done:
                    return
            reader.end()


class AsyncClient(_Base):
    """The client for asyncio. Its methods are those of `Client`."""

    _http: httpx.AsyncClient

    def _open(self, **options: Any) -> None:
        self._http = httpx.AsyncClient(**options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """See `Client.close`."""
        await self._http.aclose()

    @asynccontextmanager
    async def stream(
        self, worker: str | None, request: Fields = None, /, **fields: Any
    ) -> AsyncGenerator[AsyncIterator[Event[Any]], None]:
        """See `Client.stream`."""
        call = calls.inference(worker, request, fields, stream=True)
        async with aclosing(self._read(call, calls.event_reader(self._outputs))) as events:
            yield events

    async def infer(self, worker: str | None, request: Fields = None, /, **fields: Any) -> dict[str, Any]:
        """See `Client.infer`."""
        return await self._ask(calls.inference(worker, request, fields, stream=False))

    async def infer_file(self, worker: str | None, request: Fields = None, /, **fields: Any) -> EncodedResult:
        """See `Client.infer_file`."""
        call = calls.inference(worker, request, fields, stream=False)
        response = await self._send(call)
        return call.encoded_result(response.status_code, response.content, response.headers.get("content-type", ""))

    async def ready(self, worker: str | None = None) -> dict[str, Any]:
        """See `Client.ready`."""
        return await self._ask(calls.ready(worker))

    async def health(self, worker: str | None = None) -> dict[str, Any]:
        """See `Client.health`."""
        return await self._ask(calls.health(worker))

    async def info(self, worker: str) -> dict[str, Any]:
        """See `Client.info`."""
        return await self._ask(calls.info(worker))

    async def workers(self) -> list[dict[str, Any]]:
        """See `Client.workers`."""
        return list((await self._ask(calls.workers()))["workers"])

    @asynccontextmanager
    async def loading_progress(self, worker: str) -> AsyncGenerator[AsyncIterator[LoadProgress], None]:
        """See `Client.loading_progress`."""
        async with aclosing(self._read(calls.loading_progress(worker), calls.progress_reader())) as progress:
            yield progress

    async def wait_until_ready(self, timeout_s: float = 600.0, worker: str | None = None) -> None:
        """See `Client.wait_until_ready`."""
        patience = Patience(timeout_s)
        while True:
            try:
                seen = await self.ready(worker)
                if seen["ready"]:
                    return
                pause = patience.pause(seen)
            except (WorkerLost, InferenceTimeout) as exc:
                pause = patience.pause(exc)
            await asyncio.sleep(pause)

    async def _ask(self, call: Call) -> dict[str, Any]:
        response = await self._send(call)
        return call.answer(response.status_code, response.content)

    async def _send(self, call: Call) -> httpx.Response:
        with _translated():
            return await self._http.request(**self._arguments(call))

    async def _read(self, call: Call, reader: StreamReader[T]) -> AsyncGenerator[T, None]:
        with _translated():
            async with self._http.stream(**self._arguments(call)) as response:
                if response.status_code != 200:
                    raise calls.error_of(response.status_code, await response.aread())
                async for chunk in response.aiter_bytes():
                    for item in reader.feed(chunk):
                        yield item
                    if reader.done:
                        return
                reader.end()
