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
    """The application over `services`. Without a token everybody who reaches it may call."""
    tell = Endpoints(services)
    infer = Inference(services)
    base = "/workers/{worker_id}"
    routes = [
        Route("/health", tell.ingress_health, methods=["GET"]),
        Route("/v1/ready", tell.all_ready, methods=["GET"]),
        Route("/v1/workers", tell.list_workers, methods=["GET"]),
        Route("/v1/inference", infer, methods=["POST"]),
        Route(f"{base}/health", tell.worker_health, methods=["GET"]),
        Route(f"{base}/info", tell.worker_info, methods=["GET"]),
        Route(f"{base}/v1/ready", tell.worker_ready, methods=["GET"]),
        Route(f"{base}/v1/loading/progress", tell.loading_progress, methods=["GET"]),
        Route(f"{base}/v1/inference", infer, methods=["POST"]),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Correlation), *([Middleware(BearerAuth, token)] if token else [])],
        exception_handlers={
            WorkerError: on_worker_error,
            HTTPException: on_http_exception,
            Exception: on_unexpected,
        },
    )
    # `//v1` and `/v1/` are not `/v1`: a redirect would answer before the token is looked at.
    app.router.redirect_slashes = False
    return app
