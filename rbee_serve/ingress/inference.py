"""One inference request: checked, sent to its worker, answered as a stream or as one document."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import suppress

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rbee_serve import correlation
from rbee_serve.errors import InvalidRequest, WorkerError, WorkerNotFound
from rbee_serve.ingress.body import read_json_body
from rbee_serve.ingress.deadline import Arrival
from rbee_serve.ingress.error_responses import error_response
from rbee_serve.ingress.event_response import ClientLeft, EventResponse, unless_client_leaves
from rbee_serve.ingress.router import Reply
from rbee_serve.ingress.services import IngressServices, Worker
from rbee_serve.validation import check_form, parse

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NAME = msgspec.json.Decoder(str | None)


class Inference:
    """ASGI endpoint of `POST …/v1/inference`: the worker is named by the path, or by the body at the root."""

    def __init__(self, services: IngressServices) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with events, a result, or an error; with nothing if the client has left."""
        with suppress(ClientLeft):
            response = await self._answer(Request(scope, receive), receive)
            await response(scope, receive, send)

    async def _answer(self, request: Request, receive: Receive) -> Response | EventResponse:
        arrival = Arrival()
        try:
            worker, body = await self._addressed(request)
            checked = parse(worker.request_type, body)
            checked.timeout_s = arrival.left_s(request, checked.timeout_s)
            sending = self._services.router.send(worker.config.id, checked, correlation.current() or "")
            reply = await unless_client_leaves(receive, sending)
        except WorkerError as exc:
            return error_response(exc)
        if checked.stream:
            return EventResponse(_closing(reply))
        reply.close()
        return Response(reply.first, media_type="application/json")

    async def _addressed(self, request: Request) -> tuple[Worker, bytes]:
        """The ready worker that the request is for, and the body for it."""
        services = self._services
        if worker_id := request.path_params.get("worker_id"):
            worker = services.worker(worker_id)
            services.require_ready(worker)
            return worker, await read_json_body(request, services.limits)
        worker, body = self._worker_of_body(await read_json_body(request, services.limits))
        services.require_ready(worker)
        return worker, body

    def _worker_of_body(self, body: bytes) -> tuple[Worker, bytes]:
        """The worker that the body names, and the body without the names. What else is in it stays as it is."""
        check_form(body)
        try:
            fields = _FIELDS.decode(body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            raise InvalidRequest.of_field("body", "json", "send a JSON object in UTF-8") from None
        try:
            worker_id, model = (_NAME.decode(fields.pop(name, b"null")) for name in ("worker", "model"))
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise InvalidRequest.of_field("worker", "type: string", "worker and model are strings") from None
        if worker_id is None and model is None:
            raise InvalidRequest.of_field(
                "worker", "required", "name the worker, or the model, or use the worker's URL"
            )
        worker = self._services.find(worker_id, model)
        if worker is None:
            raise WorkerNotFound("no worker of that name or model; GET /v1/workers lists them")
        return worker, msgspec.json.encode(fields)


async def _closing(reply: Reply) -> AsyncGenerator[bytes, None]:
    """The reply's chunks; the work behind them is stopped when nobody reads on."""
    try:
        async for chunk in reply.chunks():
            yield chunk
    finally:
        reply.close()
