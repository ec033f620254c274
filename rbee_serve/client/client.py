"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any, Self, TypeVar

import httpx

from rbee_serve.client import calls
from rbee_serve.client.base import BaseClient, translated
from rbee_serve.client.calls import Call, Fields, ReadinessWait, StreamReader
from rbee_serve.client.results import Health, Readiness, WorkerDescription, WorkerInfo
from rbee_serve.errors import InferenceTimeout, WorkerLost
from rbee_serve.events import Event
from rbee_serve.result import EncodedResult
from rbee_serve.state import LoadProgress

T = TypeVar("T")


class Client(BaseClient):
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
        """The events of one inference, as they arrive. Leaving the `with` closes the connection, which cancels it.

        An error within the stream is an `Error` event; a refusal before it is raised. With None for `worker` the
        server selects one by the field `model` or `worker`. A field that is a file takes its bytes, a `Path`, or an
        open binary file. A field that cannot be sent raises `InvalidRequest`, before anything is sent.
        """
        call = calls.inference(worker, request, fields, stream=True)
        with closing(self._read(call, calls.event_reader(self._outputs))) as events:
            yield events

    def infer(self, worker: str | None, request: Fields = None, /, **fields: Any) -> dict[str, Any]:
        """The result of one inference as one object: joined outputs, the fields of `end`, and metrics."""
        return self._request(calls.inference(worker, request, fields, stream=False))

    def infer_file(self, worker: str | None, request: Fields = None, /, **fields: Any) -> EncodedResult:
        """The result of one inference as a file, such as `audio/wav`: its bytes and their content type."""
        call = calls.inference(worker, request, fields, stream=False)
        response = self._send(call)
        return call.encoded_result(response.status_code, response.content, response.headers)

    def ready(self, worker: str | None = None) -> Readiness:
        """Whether the worker is ready, or all are. Not being ready is a result and no error."""
        return self._request(calls.ready(worker))

    def health(self, worker: str | None = None) -> Health:
        """The health of the worker, or of the server. Being unhealthy is a result and no error."""
        return self._request(calls.health(worker))

    def info(self, worker: str) -> WorkerInfo:
        """The worker's `/info`."""
        return self._request(calls.info(worker))

    def workers(self) -> tuple[WorkerDescription, ...]:
        """All workers with their capabilities, limits and replicas."""
        return self._request(calls.workers()).workers

    @contextmanager
    def loading_progress(self, worker: str) -> Iterator[Iterator[LoadProgress]]:
        """The progress of a load, as it changes. Raises `WorkerUnhealthy` if nothing is loading or the load fails."""
        with closing(self._read(calls.loading_progress(worker), calls.progress_reader())) as progress:
            yield progress

    def wait_until_ready(self, timeout_s: float = 600.0, worker: str | None = None) -> None:
        """Return when the worker is ready, or all are; the server need not be up yet. Raises `WorkerLoading`."""
        wait = ReadinessWait(timeout_s)
        while True:
            try:
                readiness = self.ready(worker)
                if readiness.ready:
                    return
                pause = wait.pause(readiness)
            except (WorkerLost, InferenceTimeout) as exc:
                pause = wait.pause(exc)
            time.sleep(pause)

    def _request(self, call: Call[T]) -> T:
        response = self._send(call)
        return call.result(response.status_code, response.content, response.headers)

    def _send(self, call: Call[Any]) -> httpx.Response:
        with translated():
            return self._http.request(**self._arguments(call))

    def _read(self, call: Call[Any], reader: StreamReader[T]) -> Generator[T, None, None]:
        with translated(), self._http.stream(**self._arguments(call)) as response:
            if response.status_code != 200:
                raise calls.error_of(response.status_code, response.read(), response.headers)
            for chunk in response.iter_bytes():
                yield from reader.feed(chunk)
                if reader.done:
                    return
            reader.end()
