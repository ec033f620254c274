"""The Ray Serve deployment of the ingress."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from rbee_serve import correlation
from rbee_serve.config import ApplicationConfig
from rbee_serve.ingress.app import build_ingress
from rbee_serve.ingress.router import Router
from rbee_serve.ingress.services import IngressServices, Worker
from rbee_serve.ingress.view import View
from rbee_serve.registry import load_spec
from rbee_serve.validation import with_limits


class Ingress:
    """Builds the Starlette application inside the replica, where handles and state are at hand."""

    def __init__(
        self,
        config: ApplicationConfig,
        spec_paths: Mapping[str, str],
        base_url: str,
        port: int,
        hub: DeploymentHandle[Any],
        handles: Mapping[str, DeploymentHandle[Any]],
    ) -> None:
        correlation.configure_logging()
        view = View(hub.watch.remote, tuple(handles))
        specs = {worker_id: load_spec(path) for worker_id, path in spec_paths.items()}
        workers = {
            worker.id: Worker(worker, specs[worker.id], with_limits(specs[worker.id].request, worker.limits))
            for worker in config.workers
        }
        router = Router(handles, config.limits.acknowledge_timeout_s, hub.silence_s.remote, view.is_fresh)
        self._services = IngressServices(workers, config.limits, view, router, base_url, port)
        self._token = config.auth.token()
        self._following = asyncio.get_running_loop().create_task(view.follow(router.cut))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Ray Serve once the constructor is done."""
        return build_ingress(self._services, self._token)
