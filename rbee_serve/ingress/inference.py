"""One inference request: checked, sent to its worker, answered as a stream or as one document."""

from __future__ import annotations

from contextlib import suppress

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rbee_serve import correlation
from rbee_serve.errors import WorkerError
from rbee_serve.ingress.addressing import addressed
from rbee_serve.ingress.deadline import Arrival
from rbee_serve.ingress.error_responses import error_response
from rbee_serve.ingress.event_response import ClientLeft, EventResponse, unless_client_leaves
from rbee_serve.ingress.services import IngressServices


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
            worker, checked = await addressed(request, self._services)
            checked.timeout_s = arrival.left_s(request, checked.timeout_s)
            sending = self._services.router.send(worker.config.id, checked, correlation.current() or "")
            reply = await unless_client_leaves(receive, sending)
        except WorkerError as exc:
            return error_response(exc)
        if checked.stream:
            return EventResponse(reply.chunks(), reply.close)
        reply.close()
        return Response(reply.first, media_type=reply.media_type)
