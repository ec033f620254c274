"""One inference request: validated, sent to its worker, answered as a stream or as one document."""

from __future__ import annotations

from contextlib import nullcontext, suppress

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rbee_serve import correlation
from rbee_serve.errors import WorkerError
from rbee_serve.ingress.addressing import resolve_request
from rbee_serve.ingress.auth import key_of, visible
from rbee_serve.ingress.deadline import RequestDeadline
from rbee_serve.ingress.disconnect import ClientDisconnected, cancel_on_disconnect
from rbee_serve.ingress.error_responses import error_response
from rbee_serve.ingress.event_response import EventResponse
from rbee_serve.ingress.router import UpstreamResponse
from rbee_serve.ingress.services import IngressServices


class Inference:
    """ASGI endpoint of `POST …/v1/inference`: the worker is named by the path, or by the body at the root."""

    def __init__(self, services: IngressServices) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond with events, a result, or an error; with nothing after a disconnect. Raises `RateLimited` if the key
        has as many requests as it may have."""
        key = key_of(scope)
        with suppress(ClientDisconnected), nullcontext() if key is None else key.limit:
            response = await self._respond(Request(scope, receive), receive)
            await response(scope, receive, send)

    async def _respond(self, request: Request, receive: Receive) -> Response | EventResponse:
        deadline = RequestDeadline()
        try:
            worker, inference = await resolve_request(request, visible(request.scope, self._services))
            inference.timeout_s = deadline.left_s(request, inference.timeout_s)
            sending = self._services.router.send(worker.config.id, inference, correlation.current() or "")
            upstream = await cancel_on_disconnect(receive, sending, discard=UpstreamResponse.close)
        except WorkerError as exc:
            return error_response(exc)
        if inference.stream:
            return EventResponse(upstream.chunks(), upstream.close)
        upstream.close()
        return Response(upstream.first, media_type=upstream.media_type)
