"""What the clients say and how they understand the answers, without any input or output.

`Client` and `AsyncClient` differ in how bytes travel and in nothing else, so everything else is here, once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import msgspec

from rbee_serve.errors import (
    InternalError,
    WorkerError,
    WorkerLoading,
    WorkerLost,
    WorkerUnhealthy,
    error_from_json,
)
from rbee_serve.events import Event, from_json
from rbee_serve.outputs import OutputValue
from rbee_serve.request import InferenceRequest
from rbee_serve.result import EncodedResult
from rbee_serve.sse import MARKER, Decoder
from rbee_serve.state import LoadProgress

T = TypeVar("T")
Fields = Mapping[str, Any] | InferenceRequest | None

_NOT_THERE = frozenset({404, 502, 503, 504})
"""Statuses of whatever stands before rbee-serve while that is not up: Ray's proxy answers 404 then."""


class Unauthorized(Exception):
    """The server wants a token and did not get the right one. `code` is `MISSING_API_KEY` or `INVALID_API_KEY`."""

    code: str = "INVALID_API_KEY"


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request. `meant` is the key whose presence makes a 503 an answer and not a failure."""

    method: str
    path: str
    body: bytes | None = None
    meant: str | None = None
    patient: bool = False
    """The server is silent until the work is done, so silence says nothing."""

    def answer(self, status: int, body: bytes) -> dict[str, Any]:
        """The JSON object of the answer. Raises the `WorkerError`, or `Unauthorized`, that it tells of."""
        fields = _json_object(body)
        if fields is not None and (status == 200 or (status == 503 and self.meant in fields)):
            return fields
        raise error_of(status, body)

    def encoded_result(self, status: int, body: bytes, media_type: str) -> EncodedResult:
        """The file of the answer, or its JSON where the server sends none. Raises as `answer` does."""
        if status == 200:
            return EncodedResult(body, media_type.partition(";")[0].strip())
        raise error_of(status, body)


def inference(worker: str | None, request: Fields, fields: Mapping[str, Any], *, stream: bool) -> Call:
    """`POST /v1/inference`, to the worker or, where that is None, to the root, with a body that names one."""
    if isinstance(request, InferenceRequest):
        request = request.model_dump(mode="json", exclude_unset=True)
    body = msgspec.json.encode({**(request or {}), **fields, "stream": stream})
    return Call("POST", _base(worker) + "/v1/inference", body, patient=not stream)


def ready(worker: str | None) -> Call:
    """`GET /v1/ready`."""
    return Call("GET", _base(worker) + "/v1/ready", meant="ready")


def health(worker: str | None) -> Call:
    """`GET /health`."""
    return Call("GET", _base(worker) + "/health", meant="status")


def info(worker: str) -> Call:
    """`GET /info`."""
    return Call("GET", _base(worker) + "/info")


def workers() -> Call:
    """`GET /v1/workers`."""
    return Call("GET", "/v1/workers")


def loading_progress(worker: str) -> Call:
    """`GET /v1/loading/progress`."""
    return Call("GET", _base(worker) + "/v1/loading/progress")


def _base(worker: str | None) -> str:
    return "" if worker is None else "/workers/" + quote(worker, safe="")


def error_of(status: int, body: bytes) -> Exception:
    """The exception that an HTTP answer tells of."""
    fields = _json_object(body) or {}
    if status == 401:
        told = fields.get("error")
        told = told if isinstance(told, dict) else {}
        refusal = Unauthorized(str(told.get("message", "the server wants a valid token")))
        refusal.code = str(told.get("code", refusal.code))
        return refusal
    if "code" not in fields or "message" not in fields:
        if status == 200:
            return InternalError("the answer is not a JSON object; ask with infer_file() where it is a file")
        # Not rbee-serve: a proxy in between, or something else on that port.
        answered = f"the server answered {status} without saying why"
        return WorkerLost(answered) if status in _NOT_THERE else InternalError(answered)
    return error_from_json(fields)


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (ValueError, RecursionError):
        return None


class StreamReader(Generic[T]):
    """Turns the chunks of an SSE body into what `parse` makes of each event; None from it is skipped."""

    def __init__(self, parse: Callable[[bytes], T | None]) -> None:
        self._parse = parse
        self._decoder = Decoder()
        self.done = False
        """The marker has come: there is nothing more to read."""

    def feed(self, chunk: bytes) -> Iterator[T]:
        """What the chunk completes. Raises `InternalError` where the server does not speak the protocol."""
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
        """The body has ended. Raises `WorkerLost` where the marker has not come: the stream was cut."""
        if not self.done:
            raise WorkerLost("the stream was cut before its end")


def event_reader(outputs: tuple[type[OutputValue], ...]) -> StreamReader[Event[Any]]:
    """Reads the stream of an inference. Events of unknown types are skipped."""
    return StreamReader(lambda data: from_json(data, *outputs))


def progress_reader() -> StreamReader[LoadProgress]:
    """Reads `/v1/loading/progress`. Raises `WorkerUnhealthy` where the load failed."""
    return StreamReader(_progress)


def _progress(data: bytes) -> LoadProgress:
    fields = msgspec.json.decode(data, type=dict[str, Any])
    if fields.get("stage") == "error":
        raise WorkerUnhealthy(str(fields.get("message") or "the model could not be loaded"))
    return msgspec.convert(fields, LoadProgress)


class Patience:
    """How long to wait for readiness, and what to say when it does not come."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._end = time.monotonic() + timeout
        self._pause = 0.05

    def pause(self, seen: Mapping[str, Any] | WorkerError) -> float:
        """Seconds until the next look, at most 1. Raises `WorkerLoading` with what was `seen` last once time is up."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise WorkerLoading(f"not ready after {self._timeout:g} s: {_why(seen)}")
        self._pause = min(self._pause * 2, 1.0)
        return min(self._pause, left)


def _why(seen: Mapping[str, Any] | WorkerError) -> str:
    if isinstance(seen, WorkerError):
        return seen.message
    if isinstance(listed := seen.get("workers"), list):
        waiting = [worker for worker in listed if isinstance(worker, dict) and not worker.get("ready")]
        return "; ".join(f"{worker.get('id')}: {worker.get('reason', worker.get('state'))}" for worker in waiting)
    return f"it is {seen.get('state')}"
