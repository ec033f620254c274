"""The Ray Serve deployment of the ingress."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

import ray
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from rbee_serve import correlation
from rbee_serve.config import ApplicationConfig
from rbee_serve.ingress.app import build_ingress
from rbee_serve.ingress.keys import KeyRing
from rbee_serve.ingress.listener import Address, Listener
from rbee_serve.ingress.origin import OriginRules
from rbee_serve.ingress.router import Router
from rbee_serve.ingress.services import IngressServices, Worker
from rbee_serve.ingress.worker_state_cache import WorkerStateCache
from rbee_serve.transport.state_client import StateClient
from rbee_serve.validation.parse import with_limits
from rbee_serve.worker.registry import load_spec

STOP_S = 2.0
"""Seconds for open requests when the replica stops; Serve kills it after three."""


class Ingress:
    """Builds the Starlette application inside the replica, where handles and state are available, and serves it at
    `address`; with None, Ray Serve's proxies do."""

    # Ray Serve awaits a constructor that is a coroutine; mypy does not know that anybody would.
    async def __init__(  # type: ignore[misc]
        self,
        config: ApplicationConfig,
        spec_paths: Mapping[str, str],
        base_url: str,
        port: int,
        hub: DeploymentHandle[Any],
        handles: Mapping[str, DeploymentHandle[Any]],
        address: Address | None,
    ) -> None:
        correlation.configure_logging()
        node_id = ray.get_runtime_context().get_node_id()
        worker_ids = tuple(worker.id for worker in config.workers)
        states = WorkerStateCache(StateClient(partial(hub.reach.remote, node_id)).watch, worker_ids)
        specs = {worker_id: load_spec(path) for worker_id, path in spec_paths.items()}
        workers = {
            worker.id: Worker(worker, specs[worker.id], with_limits(specs[worker.id].request, worker.limits))
            for worker in config.workers
        }
        balanced = {worker.id for worker in config.workers if worker.replicas > 1 or worker.autoscaling is not None}
        router = Router(handles, config.limits.acknowledge_timeout_s, node_id=node_id, balanced=balanced)
        services = IngressServices(workers, config.limits, states, router, base_url, port)
        keys = KeyRing(config.auth) if config.auth.required else None
        rules = OriginRules.of(config)
        self._app = build_ingress(services, rules, keys)
        self._following = asyncio.get_running_loop().create_task(
            states.follow(router.fail_unacknowledged, router.abort)
        )
        self._listener = Listener(self._app, address, config.limits, config.tls, rules.cors) if address else None

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Ray Serve once the constructor is done."""
        return self._app

    async def __del__(self) -> None:
        """Called by Ray Serve when the replica stops gracefully."""
        if self._listener is not None:
            await self._listener.close(STOP_S)
