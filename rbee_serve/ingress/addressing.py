"""From the path, the query and the body of an HTTP request to a worker and a validated request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import msgspec
from starlette.requests import Request

from rbee_serve.errors import InvalidRequest, WorkerNotFound
from rbee_serve.ingress.body import media_type, read_body
from rbee_serve.ingress.services import IngressServices, Worker
from rbee_serve.ingress.upload import read_upload, typed
from rbee_serve.request import InferenceRequest
from rbee_serve.result import JSON
from rbee_serve.validation.parse import check_body, parse, parse_object

T = TypeVar("T")

LARGE_BODY_BYTES = 1024 * 1024
"""A body of this size takes a few milliseconds to parse."""

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NAME = msgspec.json.Decoder(str | None)


async def resolve_request(request: Request, services: IngressServices) -> tuple[Worker, InferenceRequest]:
    """The ready worker that the path names, or at the root the body, and the request for it.

    Raises the `WorkerError` for an invalid body, and for a worker, or a helper worker that this request needs, which
    takes no requests now.
    """
    worker, inference = await _resolve(request, services)
    services.require_ready(worker, inference.roles)
    return worker, inference


async def _resolve(request: Request, services: IngressServices) -> tuple[Worker, InferenceRequest]:
    content_type, worker_id = media_type(request), request.path_params.get("worker_id")
    worker = _ready(services, services.worker(worker_id)) if worker_id else None
    body = await read_body(request, services.limits)
    if content_type != JSON:
        upload = await read_upload(request, content_type, body)
        target = worker or _ready(services, _worker_of_upload(services, upload))
        return target, parse_object(target.request_type, typed(upload, content_type, target.request_type))
    if worker is None:
        worker, body = _worker_of_body(services, body)
        _ready(services, worker)
    return worker, await _off_loop_if_large(body, partial(parse, worker.request_type, body))


def _ready(services: IngressServices, worker: Worker) -> Worker:
    services.require_ready(worker)
    return worker


def _worker_of_upload(services: IngressServices, upload: dict[str, str | bytes]) -> Worker:
    """The worker that a form or a query names; the names are removed from `upload`."""
    names = (upload.pop("worker", None), upload.pop("model", None))
    worker_id, model = (name if isinstance(name, str) else None for name in names)
    return _found(services, worker_id, model)


def _worker_of_body(services: IngressServices, body: bytes) -> tuple[Worker, bytes]:
    """The worker that the body names, and the body without the names and otherwise unchanged."""
    check_body(body)
    try:
        fields = _FIELDS.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise InvalidRequest.of_field("body", "json", "send a JSON object in UTF-8") from None
    try:
        worker_id, model = (_NAME.decode(fields.pop(name, b"null")) for name in ("worker", "model"))
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest.of_field("worker", "type: string", "worker and model are strings") from None
    return _found(services, worker_id, model), msgspec.json.encode(fields)


def _found(services: IngressServices, worker_id: str | None, model: str | None) -> Worker:
    if worker_id is None and model is None:
        raise InvalidRequest.of_field("worker", "required", "name the worker, or the model, or use the worker's URL")
    worker = services.find(worker_id, model)
    if worker is None:
        raise WorkerNotFound("no worker of that name or model; GET /v1/workers lists them")
    return worker


async def _off_loop_if_large(body: bytes, work: Callable[[], T]) -> T:
    """`work` on a body: in a thread if it is so large that other requests would have to wait."""
    return await asyncio.to_thread(work) if len(body) > LARGE_BODY_BYTES else work()
