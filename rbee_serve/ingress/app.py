"""The Starlette application: routes and plain ASGI middleware."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp

from rbee_serve.errors import WorkerError
from rbee_serve.ingress.auth import BearerAuth
from rbee_serve.ingress.correlation import Correlation
from rbee_serve.ingress.endpoints import Endpoints
from rbee_serve.ingress.error_responses import on_http_exception, on_unexpected, on_worker_error
from rbee_serve.ingress.inference import Inference
from rbee_serve.ingress.keys import KeyRing
from rbee_serve.ingress.origin import OriginCheck, OriginRules
from rbee_serve.ingress.services import IngressServices


class IngressApp(Starlette):
    """The routes, with the middleware around everything else: also the response to an unexpected exception has a
    correlation id and the headers for the page that sent the request."""

    def __init__(self, routes: list[Route], rules: OriginRules, keys: KeyRing | None) -> None:
        self._rules = rules
        self.keys = keys
        handlers = {WorkerError: on_worker_error, HTTPException: on_http_exception, Exception: on_unexpected}
        super().__init__(routes=routes, exception_handlers=handlers)
        self.router.redirect_slashes = False

    def build_middleware_stack(self) -> ASGIApp:
        """Called by Starlette at the first request."""
        app = super().build_middleware_stack()
        authenticated = BearerAuth(app, self.keys) if self.keys is not None else app
        return Correlation(OriginCheck(authenticated, self._rules))


def build_ingress(services: IngressServices, rules: OriginRules, keys: KeyRing | None) -> Starlette:
    """The application over `services`. Without keys it needs no authentication."""
    status_endpoints = Endpoints(services)
    inference = Inference(services)
    base = "/workers/{worker_id}"
    routes = [  # they are tried in this order
        Route(f"{base}/v1/inference", inference, methods=["POST"]),
        Route("/v1/inference", inference, methods=["POST"]),
        Route("/health", status_endpoints.ingress_health, methods=["GET"]),
        Route("/v1/ready", status_endpoints.all_ready, methods=["GET"]),
        Route("/v1/workers", status_endpoints.list_workers, methods=["GET"]),
        Route(f"{base}/health", status_endpoints.worker_health, methods=["GET"]),
        Route(f"{base}/info", status_endpoints.worker_info, methods=["GET"]),
        Route(f"{base}/v1/ready", status_endpoints.worker_ready, methods=["GET"]),
        Route(f"{base}/v1/loading/progress", status_endpoints.loading_progress, methods=["GET"]),
    ]
    # A slash at the end changes nothing. It is no redirect, which would be sent before the token is checked.
    slashed = [Route(f"{route.path}/", route.endpoint, methods=route.methods) for route in routes]
    return IngressApp([*routes, *slashed], rules, keys)
