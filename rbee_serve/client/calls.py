"""The requests of the clients and the parsing of responses, without any I/O.

`Client` and `AsyncClient` differ in their I/O only; everything else is here, once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import msgspec

from rbee_serve.client.request_body import json_body
from rbee_serve.client.results import Health, Readiness, WorkerInfo, WorkerList
from rbee_serve.errors import (
    InternalError,
    InvalidRequest,
    WorkerError,
    WorkerLoading,
    WorkerLost,
    WorkerUnhealthy,
)
from rbee_serve.errors_json import error_from_json
from rbee_serve.events import Event, from_json
from rbee_serve.outputs import OutputValue
from rbee_serve.request import InferenceRequest
from rbee_serve.result import EncodedResult
from rbee_serve.sse import MARKER, Decoder
from rbee_serve.state import LoadProgress

T = TypeVar("T")
Fields = Mapping[str, Any] | InferenceRequest | None

_NOT_UP = frozenset({404, 502, 503, 504})
"""Statuses of a proxy in front of rbee-serve while that is not up: Ray's proxy responds with 404 then."""

_SECONDS = re.compile("[0-9]{1,9}")
"""A `Retry-After` in seconds. rbee-serve sends no date."""


class Unauthorized(Exception):
    """The token is missing or wrong. `code` is `MISSING_API_KEY` or `INVALID_API_KEY`."""

    code: str = "INVALID_API_KEY"


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One HTTP request and the type of its result. `result_key` is the key whose presence makes a 503 a result and not
    an error."""

    method: str
    path: str
    result_type: type[T]
    body: bytes | None = None
    result_key: str | None = None
    no_read_timeout: bool = False
    """The server sends nothing until the work is done, so a silence is no fault."""

    def result(self, status: int, body: bytes, headers: Mapping[str, str]) -> T:
        """The result in a response. Raises its `WorkerError` or `Unauthorized`, or `InternalError` if it is another
        object than expected."""
        fields = _json_object(body)
        if fields is None or not (status == 200 or (status == 503 and self.result_key in fields)):
            raise error_of(status, body, headers)
        try:
            return msgspec.convert(fields, self.result_type)
        except msgspec.ValidationError as exc:
            raise InternalError(f"the response of {self.path} is not one of rbee-serve: {exc}") from exc

    def encoded_result(self, status: int, body: bytes, headers: Mapping[str, str]) -> EncodedResult:
        """The file in a response, or its JSON where the server sends no file. Raises as `result` does."""
        if status == 200:
            return EncodedResult(body, headers.get("content-type", "").partition(";")[0].strip())
        raise error_of(status, body, headers)


def inference(worker: str | None, request: Fields, fields: Mapping[str, Any], *, stream: bool) -> Call[dict[str, Any]]:
    """`POST /v1/inference` of the worker or, where that is None, of the root, with a body that names one.

    Reads the files among the fields. Raises `InvalidRequest` by field as `json_body` does.
    """
    if isinstance(request, InferenceRequest):
        request = request.model_dump(mode="json", exclude_unset=True)
    body = json_body({**(request or {}), **fields, "stream": stream})
    return Call("POST", _base(worker) + "/v1/inference", dict[str, Any], body, no_read_timeout=not stream)


def ready(worker: str | None) -> Call[Readiness]:
    """`GET /v1/ready`."""
    return Call("GET", _base(worker) + "/v1/ready", Readiness, result_key="ready")


def health(worker: str | None) -> Call[Health]:
    """`GET /health`."""
    return Call("GET", _base(worker) + "/health", Health, result_key="status")


def info(worker: str) -> Call[WorkerInfo]:
    """`GET /info`."""
    return Call("GET", _base(worker) + "/info", WorkerInfo)


def workers() -> Call[WorkerList]:
    """`GET /v1/workers`."""
    return Call("GET", "/v1/workers", WorkerList)


def loading_progress(worker: str) -> Call[LoadProgress]:
    """`GET /v1/loading/progress`."""
    return Call("GET", _base(worker) + "/v1/loading/progress", LoadProgress)


def _base(worker: str | None) -> str:
    try:
        return "" if worker is None else "/workers/" + quote(worker, safe="")
    except UnicodeEncodeError as exc:
        raise InvalidRequest.of_field("worker", "unicode", "must be valid Unicode without lone surrogates") from exc


def error_of(status: int, body: bytes, headers: Mapping[str, str]) -> Exception:
    """The exception for an HTTP response that is no result. `headers` have their names in any case, as in httpx."""
    error = _error_of(status, body)
    if isinstance(error, WorkerError) and _SECONDS.fullmatch(seconds := headers.get("retry-after", "")):
        error.retry_after_s = int(seconds)
    return error


def _error_of(status: int, body: bytes) -> Exception:
    fields = _json_object(body) or {}
    if status == 401:
        details = fields.get("error")
        details = details if isinstance(details, dict) else {}
        refusal = Unauthorized(str(details.get("message", "the server requires a valid token")))
        refusal.code = str(details.get("code", refusal.code))
        return refusal
    if "code" not in fields or "message" not in fields:
        if status == 200:
            return InternalError("the response is not a JSON object; use infer_file() where it is a file")
        # Not rbee-serve: a proxy in between, or another program on that port.
        message = f"the server responded with {status} and no reason"
        return WorkerLost(message) if status in _NOT_UP else InternalError(message)
    return error_from_json(fields)


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (ValueError, RecursionError):
        return None


class StreamReader(Generic[T]):
    """Parses the chunks of an SSE body: `parse` is called with each event, and its result skipped where it is None."""

    def __init__(self, parse: Callable[[bytes], T | None]) -> None:
        self._parse = parse
        self._decoder = Decoder()
        self.done = False
        """Whether the end marker has arrived."""

    def feed(self, chunk: bytes) -> Iterator[T]:
        """The events that the chunk completes. Raises `InternalError` on a body that breaks the protocol."""
        try:
            for data in self._decoder.feed(chunk):
                if data == MARKER:
                    self.done = True
                    return
                if (item := self._parse(data)) is not None:
                    yield item
        except (ValueError, RecursionError) as exc:
            raise InternalError("the server sent something that is not an event") from exc

    def end(self) -> None:
        """The body has ended. Raises `WorkerLost` where the end marker is missing: the stream was cut."""
        if not self.done:
            raise WorkerLost("the stream was cut before its end")


def event_reader(outputs: tuple[type[OutputValue], ...]) -> StreamReader[Event[Any]]:
    """A reader for an inference. Events of unknown types are skipped."""
    return StreamReader(lambda data: from_json(data, *outputs))


def progress_reader() -> StreamReader[LoadProgress]:
    """A reader for `/v1/loading/progress`. It raises `WorkerUnhealthy` where the load failed."""
    return StreamReader(_progress)


def _progress(data: bytes) -> LoadProgress:
    fields = msgspec.json.decode(data, type=dict[str, Any])
    if fields.get("stage") == "error":
        raise WorkerUnhealthy(str(fields.get("message") or "the model could not be loaded"))
    return msgspec.convert(fields, LoadProgress)


class ReadinessWait:
    """The pauses and the deadline of a wait for readiness."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._end = time.monotonic() + timeout
        self._pause = 0.05

    def pause(self, last: Readiness | WorkerError) -> float:
        """Seconds until the next attempt, at most 1. Raises `WorkerLoading` with the `last` result after the
        deadline."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise WorkerLoading(f"not ready after {self._timeout:g} s: {_why(last)}")
        self._pause = min(self._pause * 2, 1.0)
        return min(self._pause, left)


def _why(last: Readiness | WorkerError) -> str:
    if isinstance(last, WorkerError):
        return last.message
    if last.workers:
        return "; ".join(f"{worker.id}: {worker.reason or worker.state}" for worker in last.workers if not worker.ready)
    return f"it is {last.state}"
