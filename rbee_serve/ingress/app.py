"""The Starlette application: routes and plain ASGI middleware."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import ASGIApp

from rbee_serve.errors import WorkerError
from rbee_serve.ingress.auth import BearerAuth
from rbee_serve.ingress.correlation import Correlation
from rbee_serve.ingress.endpoints import Endpoints
from rbee_serve.ingress.error_responses import on_http_exception, on_unexpected, on_worker_error
from rbee_serve.ingress.inference import Inference
from rbee_serve.ingress.services import IngressServices


def build_ingress(services: IngressServices, token: bytes | None) -> ASGIApp:
    """The application over `services`. Without a token it needs no authentication."""
    status_endpoints = Endpoints(services)
    inference = Inference(services)
    base = "/workers/{worker_id}"
    routes = [
        Route("/health", status_endpoints.ingress_health, methods=["GET"]),
        Route("/v1/ready", status_endpoints.all_ready, methods=["GET"]),
        Route("/v1/workers", status_endpoints.list_workers, methods=["GET"]),
        Route("/v1/inference", inference, methods=["POST"]),
        Route(f"{base}/health", status_endpoints.worker_health, methods=["GET"]),
        Route(f"{base}/info", status_endpoints.worker_info, methods=["GET"]),
        Route(f"{base}/v1/ready", status_endpoints.worker_ready, methods=["GET"]),
        Route(f"{base}/v1/loading/progress", status_endpoints.loading_progress, methods=["GET"]),
        Route(f"{base}/v1/inference", inference, methods=["POST"]),
    ]
    app = Starlette(
        # A slash at the end changes nothing. It is no redirect, which would be sent before the token is checked.
        routes=[*routes, *(Route(f"{route.path}/", route.endpoint, methods=route.methods) for route in routes)],
        middleware=[Middleware(Correlation), *([Middleware(BearerAuth, token)] if token else [])],
        exception_handlers={
            WorkerError: on_worker_error,
            HTTPException: on_http_exception,
            Exception: on_unexpected,
        },
    )
    app.router.redirect_slashes = False
    return app
