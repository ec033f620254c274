"""From the deployment to the moment when every worker is up or has failed, and what happens after that."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping

import httpx

from rbee_serve.supervisor.cluster import DeployStatus
from rbee_serve.supervisor.display import Display, describe
from rbee_serve.supervisor.readiness import ApplicationClient, WorkerReadiness

POLL_S = 0.5
STATUS_S = 2.0
"""How often Ray Serve itself is asked. It costs more, and says little that the application does not."""
WATCH_S = 2.0
"""How often the application is asked when everything is up."""

INGRESS_S = 30.0
"""How long the ingress may take to come up after the first worker has failed."""

Workers = tuple[WorkerReadiness, ...]


class StartFailed(Exception):
    """Nothing is served; the message says why."""


def follow(
    application: ApplicationClient, status: Callable[[], DeployStatus], display: Display, wait: Callable[[float], bool]
) -> Workers | None:
    """Show the loads until every worker is ready or has failed, and return them; None if `wait` says to stop.

    Raises `StartFailed` if Ray Serve cannot start the application at all.
    """
    deployed = DeployStatus()
    given_up: Mapping[str, str] = {}
    asked_at = -STATUS_S
    give_up_at = math.inf
    while True:
        if time.monotonic() - asked_at >= STATUS_S:
            before, deployed = deployed, status()
            asked_at = time.monotonic()
            if deployed.failed and not before.failed:
                give_up_at = asked_at + INGRESS_S
            # A worker tells its reason itself, if it can; Serve's word counts when there was time for that.
            given_up = {name: why for name, why in deployed.failures.items() if name in before.failures}
        workers = _ask(application)
        if workers is None and deployed.failed and not (_ingress_comes(deployed) and time.monotonic() < give_up_at):
            raise StartFailed(next(iter(deployed.failures.values()), deployed.message))
        if workers is not None:
            workers = tuple(_with_verdict(worker, given_up) for worker in workers)
            display.workers({worker.id: worker for worker in workers}, deployed.hints)
            if all(worker.ready or worker.failed for worker in workers):
                return workers
        if wait(POLL_S):
            return None


def watch(
    application: ApplicationClient,
    alive: Callable[[], bool],
    known: Workers,
    say: Callable[[str], None],
    wait: Callable[[float], bool],
) -> bool:
    """Tell of every worker that is lost or comes back, until `wait` says to stop. False if Ray is not alive first."""
    shown: Mapping[str, bool] = {worker.id: worker.ready for worker in known}
    while not wait(WATCH_S):
        if not alive():
            return False
        for worker in _ask(application) or ():
            if shown[worker.id] != worker.ready:
                say(f"{time.strftime('%H:%M:%S')} {worker.id}: {worker.reason or describe(worker)}")
                shown = {**shown, worker.id: worker.ready}
    return True


def _ingress_comes(deployed: DeployStatus) -> bool:
    """Whether it is only workers that have failed: the ingress can tell more of them, once it is there."""
    return bool(deployed.failures) and "ingress" not in deployed.failures


def _ask(application: ApplicationClient) -> Workers | None:
    try:
        return application.ready()
    except httpx.HTTPError:
        return None


def _with_verdict(worker: WorkerReadiness, given_up: Mapping[str, str]) -> WorkerReadiness:
    if worker.ready or worker.failed or worker.id not in given_up:
        return worker
    return dataclasses.replace(worker, state="error", reason=given_up[worker.id])
