"""The wait until every worker is ready or has failed, and the monitoring after that."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import msgspec

from rbee_serve.client import Client, Unauthorized, WorkerReadiness
from rbee_serve.deploy_status import DeployStatus
from rbee_serve.errors import WorkerError
from rbee_serve.supervisor.display import Display, describe

POLL_S = 0.5
"""How often the application is polled while workers load."""
STATUS_S = 2.0
"""How often Ray Serve itself is polled. It costs more, and adds little to what the application reports."""
MONITOR_S = 2.0
"""How often the application is polled once everything is up."""
INGRESS_S = 30.0
"""How long the ingress may take to start after the first worker has failed."""

Workers = tuple[WorkerReadiness, ...]


class StartFailed(Exception):
    """Nothing is served; the message is the reason."""


def wait_for_load(
    client: Client, status: Callable[[], DeployStatus], display: Display, wait: Callable[[float], bool]
) -> Workers | None:
    """Show the loads until every worker is ready or has failed, and return them; None if `wait` returns True.

    Raises `StartFailed` if Ray Serve cannot start the application at all.
    """
    deployed = DeployStatus()
    given_up: Mapping[str, str] = {}
    polled_at = -STATUS_S
    ingress_deadline = math.inf
    while True:
        if time.monotonic() - polled_at >= STATUS_S:
            before, deployed = deployed, status()
            polled_at = time.monotonic()
            if deployed.failed and not before.failed:
                ingress_deadline = polled_at + INGRESS_S
            # A worker reports its reason itself, if it can; Serve's reason counts after it had the time for that.
            given_up = {name: why for name, why in deployed.given_up.items() if name in before.given_up}
        workers = _workers(client)
        ingress_starts = _ingress_starts(deployed) and time.monotonic() < ingress_deadline
        if workers is None and deployed.failed and not ingress_starts:
            raise StartFailed(next(iter(deployed.failures.values()), deployed.message))
        if workers is not None:
            workers = tuple(_with_failure(worker, given_up) for worker in workers)
            display.workers({worker.id: worker for worker in workers}, deployed.hints)
            if all(worker.ready or worker.failed for worker in workers):
                return workers
        if wait(POLL_S):
            return None


def monitor(
    client: Client,
    alive: Callable[[], bool],
    known: Workers,
    show: Callable[[str], None],
    wait: Callable[[float], bool],
) -> bool:
    """Show every worker that is lost, and why, or that comes back, until `wait` returns True. False if Ray is not alive
    any more."""
    shown = {worker.id: _line(worker) for worker in known}
    while not wait(MONITOR_S):
        if not alive():
            return False
        for worker in _workers(client) or ():
            if shown.get(worker.id) != (line := _line(worker)):
                show(f"{time.strftime('%H:%M:%S')} {worker.id}: {line}")
                shown[worker.id] = line
    return True


def _line(worker: WorkerReadiness) -> str:
    """What is shown of a worker. Its reason names no stage of a load that follows a loss, so each is one line."""
    return describe(worker) if worker.failed else worker.reason or describe(worker)


def _ingress_starts(deployed: DeployStatus) -> bool:
    """Whether only workers have failed: the ingress reports their reasons once it is up."""
    return bool(deployed.failures) and "ingress" not in deployed.failures


def _workers(client: Client) -> Workers | None:
    try:
        return client.ready().workers
    except (WorkerError, Unauthorized):
        return None


def _with_failure(worker: WorkerReadiness, given_up: Mapping[str, str]) -> WorkerReadiness:
    if worker.ready or worker.failed or worker.id not in given_up:
        return worker
    return msgspec.structs.replace(worker, state="error", reason=given_up[worker.id])
