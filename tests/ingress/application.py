"""The ingress on a real socket, without Ray: its routes, its middleware, and one worker without a channel."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

import uvicorn
from starlette.applications import Starlette

from deployments.echo import SPEC, EchoRequest
from rbee_serve.config import LimitsConfig, parse_application
from rbee_serve.errors import ConfigurationError
from rbee_serve.ingress.app import build_ingress
from rbee_serve.ingress.keys import KeyRing
from rbee_serve.ingress.origin import OriginRules
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


def application(token: bytes | None, **args: Any) -> Starlette:
    """The real routes over workers of which `echo-0` is ready; with more `args` of the configuration."""
    folder = Path(mkdtemp())
    if token is not None:
        (folder / "token").write_bytes(token)
        args = {**args, "auth": {"token_file": folder / "token"}}
    try:
        app = configured({"workers": [{"id": "echo-0", "type": "echo"}], **args})
    except ConfigurationError:
        shutil.rmtree(folder)
        raise
    weakref.finalize(app, shutil.rmtree, folder)
    return app


def configured(args: dict[str, Any], router: Router | None = None) -> Starlette:
    """The real routes over echo workers, as `args` configures them."""
    config = parse_application(args)
    workers = {worker.id: Worker(worker, SPEC, EchoRequest) for worker in config.workers}
    services = services_of(workers, "echo-0", config.limits)
    if router is not None:
        services = replace(services, router=router)
    keys = KeyRing(config.auth) if config.auth.required else None
    return build_ingress(services, OriginRules.of(config), keys)


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


def keys_in(folder: Path, **keys: dict[str, Any]) -> dict[str, Any]:
    """The configuration of keys, each with the token `NAME-token`."""
    listed = []
    for name, options in keys.items():
        (folder / name).write_text(f"{name}-token\n")
        listed.append({"name": name, "token_file": folder / name, **options})
    return {"keys": listed}
