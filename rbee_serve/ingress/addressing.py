"""From the path, the query and the body of an HTTP request to a worker and a validated request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import msgspec
from pydantic_core import to_json
from starlette.requests import Request

from rbee_serve.errors import InvalidRequest, WorkerNotFound
from rbee_serve.ingress.body import media_type, read_body
from rbee_serve.ingress.services import IngressServices, Worker
from rbee_serve.ingress.upload import (
    URL_ENCODED,
    Upload,
    is_url_encoded_form,
    query_fields,
    read_upload,
    text_of,
    typed,
)
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
    if content_type == JSON and body[:1] != b"{" and is_url_encoded_form(request, body):
        content_type = URL_ENCODED
    if content_type != JSON:
        upload = await _off_loop_if_large(body, partial(read_upload, request, content_type, body))
        target = worker or _ready(services, _worker_of_upload(services, upload))
        fields = await _off_loop_if_large(body, partial(typed, upload, content_type, target.request_type))
        return target, parse_object(target.request_type, fields)
    query = query_fields(request) if request.scope["query_string"] else {}
    if worker is None:
        worker, body = _worker_of_body(services, body, query)
        _ready(services, worker)
    if query:
        body = _with_query(body, typed(query, JSON, worker.request_type))
    return worker, await _off_loop_if_large(body, partial(parse, worker.request_type, body))


def _ready(services: IngressServices, worker: Worker) -> Worker:
    services.require_ready(worker)
    return worker


def _worker_of_upload(services: IngressServices, upload: Upload) -> Worker:
    """The worker that a form or a query names; the names are removed from `upload`."""
    return _found(services, text_of(upload, "worker"), text_of(upload, "model"))


def _worker_of_body(services: IngressServices, body: bytes, query: Upload) -> tuple[Worker, bytes]:
    """The worker that the body or the query names, and the body without the names and otherwise unchanged. They are
    removed from the query too."""
    fields = _fields(body)
    for name in ("worker", "model"):
        if (text := text_of(query, name)) is not None:
            _add(fields, name, text)
    try:
        worker_id, model = (_NAME.decode(fields.pop(name, b"null")) for name in ("worker", "model"))
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest.of_field("worker", "type: string", "worker and model are strings") from None
    return _found(services, worker_id, model), msgspec.json.encode(fields)


def _with_query(body: bytes, query: Mapping[str, Any]) -> bytes:
    """The body with the fields of the query. Raises `InvalidRequest` for a field that both give, and not alike."""
    fields = _fields(body)
    for name, value in query.items():
        _add(fields, name, value)
    return msgspec.json.encode(fields)


def _fields(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        return _FIELDS.decode(check_body(body))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise InvalidRequest.of_field("body", "json", "send a JSON object in UTF-8") from None


def _add(fields: dict[str, msgspec.Raw], name: str, value: Any) -> None:
    """Add a field of the query to those of the body."""
    try:
        given = msgspec.json.decode(fields.get(name, b"null"))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        given = object()
    if given is not None and given != value:
        raise InvalidRequest.of_field(
            name, "once", "is given in the body, and with another value in the query; give it once"
        )
    # NaN and infinities stay what they are, for the validation to refuse; msgspec would write null.
    fields[name] = msgspec.Raw(to_json(value, bytes_mode="base64", inf_nan_mode="constants"))


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
