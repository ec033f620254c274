"""One inference request: checked, sent to its worker, answered as a stream or as one document."""

from __future__ import annotations

from contextlib import suppress

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rbee_serve import correlation
from rbee_serve.errors import WorkerError
from rbee_serve.ingress.addressing import resolve_request
from rbee_serve.ingress.deadline import RequestDeadline
from rbee_serve.ingress.error_responses import error_response
from rbee_serve.ingress.event_response import ClientDisconnected, EventResponse, cancel_on_disconnect
from rbee_serve.ingress.services import IngressServices


class Inference:
    """ASGI endpoint of `POST …/v1/inference`: the worker is named by the path, or by the body at the root."""

    def __init__(self, services: IngressServices) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with events, a result, or an error; with nothing if the client has left."""
        with suppress(ClientDisconnected):
            response = await self._answer(Request(scope, receive), receive)
            await response(scope, receive, send)

    async def _answer(self, request: Request, receive: Receive) -> Response | EventResponse:
        arrival = RequestDeadline()
        try:
            worker, checked = await resolve_request(request, self._services)
            checked.timeout_s = arrival.left_s(request, checked.timeout_s)
            sending = self._services.router.send(worker.config.id, checked, correlation.current() or "")
            reply = await cancel_on_disconnect(receive, sending)
        except WorkerError as exc:
            return error_response(exc)
        if checked.stream:
            return EventResponse(reply.chunks(), reply.close)
        reply.close()
        return Response(reply.first, media_type=reply.media_type)
