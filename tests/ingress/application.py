"""The ingress on a real socket, without Ray: its routes, its middleware, and one worker that nobody can reach."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import uvicorn
from starlette.applications import Starlette

from deployments.echo import SPEC, EchoRequest
from rbee_serve.config import LimitsConfig, WorkerConfig
from rbee_serve.ingress.app import build_ingress
from rbee_serve.ingress.router import Router
from rbee_serve.ingress.services import IngressServices, Worker
from rbee_serve.ingress.worker_state_cache import WorkerStateCache
from rbee_serve.state import ReplicaState, Snapshot, WorkerState


async def nothing_new(version: int, hold_s: float) -> Snapshot:
    await asyncio.sleep(hold_s)
    return Snapshot(version=version, workers=())


async def seconds_since_last_push(worker_id: str) -> float:
    return 0.0


def ready_view(worker_id: str) -> WorkerStateCache:
    """A view in which that worker is ready."""
    view = WorkerStateCache(nothing_new, (worker_id,))
    replica = ReplicaState(worker_id=worker_id, replica_id="r", boot_id="b", phase="ready", backend="cpu")
    view.snapshot = Snapshot(
        version=1, workers=(WorkerState(worker_id=worker_id, desired_replicas=1, replicas=(replica,)),)
    )
    return view


def application(token: bytes | None) -> Starlette:
    """The real routes over one worker that is ready."""
    worker = Worker(WorkerConfig(id="echo-0", type="echo"), SPEC, EchoRequest)
    router = Router({}, 1.0, seconds_since_last_push, lambda worker_id, heard_at: False)
    services = IngressServices({"echo-0": worker}, LimitsConfig(), ready_view("echo-0"), router, "http://localhost", 80)
    app = build_ingress(services, token)
    assert isinstance(app, Starlette)
    return app


@contextmanager
def serving(app: Starlette, parser: Literal["httptools", "h11"]) -> Iterator[str]:
    """The URL of the application while the block runs."""
    config = uvicorn.Config(app, port=0, http=parser, log_level="error", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = server.force_exit = True
    thread.join()
