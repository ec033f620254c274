"""The ingress on a real socket, without Ray: its routes, its middleware, and one worker without a channel."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping
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


async def no_change(version: int, max_wait_s: float) -> Snapshot:
    await asyncio.sleep(max_wait_s)
    return Snapshot(version=version, workers=())


def snapshot_of(worker_id: str, *, version: int = 1, serving: bool = True) -> Snapshot:
    """A worker with one replica that serves, or with none."""
    replica = ReplicaState(worker_id=worker_id, replica_id="r", boot_id="b", phase="ready", backend="cpu")
    worker = WorkerState(worker_id=worker_id, desired_replicas=1, replicas=(replica,) if serving else ())
    return Snapshot(version=version, workers=(worker,))


def ready_states(worker_id: str) -> WorkerStateCache:
    """A cache in which that worker is ready."""
    states = WorkerStateCache(no_change, (worker_id,))
    states.snapshot = snapshot_of(worker_id)
    return states


def services_of(
    workers: Mapping[str, Worker], ready_worker_id: str, limits: LimitsConfig | None = None
) -> IngressServices:
    """The services over these workers, one of which is ready."""
    states = ready_states(ready_worker_id)
    return IngressServices(dict(workers), limits or LimitsConfig(), states, Router({}, 1.0), "http://localhost", 80)


def application(token: bytes | None, limits: LimitsConfig | None = None) -> Starlette:
    """The real routes over one worker that is ready."""
    worker = Worker(WorkerConfig(id="echo-0", type="echo"), SPEC, EchoRequest)
    app = build_ingress(services_of({"echo-0": worker}, "echo-0", limits), token)
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
