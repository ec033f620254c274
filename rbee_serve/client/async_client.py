"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Self, TypeVar

import httpx

from rbee_serve.client import calls
from rbee_serve.client.base import BaseClient, translated
from rbee_serve.client.calls import Call, Fields, ReadinessWait, StreamReader
from rbee_serve.client.request_body import has_files
from rbee_serve.client.results import Health, Readiness, WorkerDescription, WorkerInfo
from rbee_serve.errors import InferenceTimeout, WorkerLost
from rbee_serve.events import Event
from rbee_serve.result import EncodedResult
from rbee_serve.state import LoadProgress

T = TypeVar("T")


class AsyncClient(BaseClient):
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
        call = await _inference(worker, request, fields, stream=True)
        async with aclosing(self._read(call, calls.event_reader(self._outputs))) as events:
            yield events

    async def infer(self, worker: str | None, request: Fields = None, /, **fields: Any) -> dict[str, Any]:
        """See `Client.infer`."""
        return await self._request(await _inference(worker, request, fields, stream=False))

    async def infer_file(self, worker: str | None, request: Fields = None, /, **fields: Any) -> EncodedResult:
        """See `Client.infer_file`."""
        call = await _inference(worker, request, fields, stream=False)
        response = await self._send(call)
        return call.encoded_result(response.status_code, response.content, response.headers)

    async def ready(self, worker: str | None = None) -> Readiness:
        """See `Client.ready`."""
        return await self._request(calls.ready(worker))

    async def health(self, worker: str | None = None) -> Health:
        """See `Client.health`."""
        return await self._request(calls.health(worker))

    async def info(self, worker: str) -> WorkerInfo:
        """See `Client.info`."""
        return await self._request(calls.info(worker))

    async def workers(self) -> tuple[WorkerDescription, ...]:
        """See `Client.workers`."""
        return (await self._request(calls.workers())).workers

    @asynccontextmanager
    async def loading_progress(self, worker: str) -> AsyncGenerator[AsyncIterator[LoadProgress], None]:
        """See `Client.loading_progress`."""
        async with aclosing(self._read(calls.loading_progress(worker), calls.progress_reader())) as progress:
            yield progress

    async def wait_until_ready(self, timeout_s: float = 600.0, worker: str | None = None) -> None:
        """See `Client.wait_until_ready`."""
        wait = ReadinessWait(timeout_s)
        while True:
            try:
                readiness = await self.ready(worker)
                if readiness.ready:
                    return
                pause = wait.pause(readiness)
            except (WorkerLost, InferenceTimeout) as exc:
                pause = wait.pause(exc)
            await asyncio.sleep(pause)

    async def _request(self, call: Call[T]) -> T:
        response = await self._send(call)
        return call.result(response.status_code, response.content, response.headers)

    async def _send(self, call: Call[Any]) -> httpx.Response:
        with translated():
            return await self._http.request(**self._arguments(call))

    async def _read(self, call: Call[Any], reader: StreamReader[T]) -> AsyncGenerator[T, None]:
        with translated():
            async with self._http.stream(**self._arguments(call)) as response:
                if response.status_code != 200:
                    raise calls.error_of(response.status_code, await response.aread(), response.headers)
                async for chunk in response.aiter_bytes():
                    for item in reader.feed(chunk):
                        yield item
                    if reader.done:
                        return
                reader.end()


async def _inference(worker: str | None, request: Fields, fields: dict[str, Any], *, stream: bool) -> Call[Any]:
    """`calls.inference`, which reads files in a thread."""
    if has_files(fields) or has_files(request):
        return await asyncio.to_thread(calls.inference, worker, request, fields, stream=stream)
    return calls.inference(worker, request, fields, stream=stream)
