"""`rbee-serve serve`: from a checked file to a drained stop."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

import httpx
from rich.console import Console

from rbee_serve.errors import ConfigurationError
from rbee_serve.ray_settings import set_missing
from rbee_serve.supervisor.checks import CheckedConfig, check_port_is_free
from rbee_serve.supervisor.cluster import Cluster
from rbee_serve.supervisor.display import Display, make_display
from rbee_serve.supervisor.drain import drain
from rbee_serve.supervisor.environment import check_environment, with_proxy_location
from rbee_serve.supervisor.hub_client import HubClient
from rbee_serve.supervisor.monitor import StartFailed, Workers, follow, watch
from rbee_serve.supervisor.readiness import ApplicationClient
from rbee_serve.supervisor.stop_signal import Stopped, StopSignal
from rbee_serve.supervisor.summary import summary

LONGEST_STOP_S = 28.0
"""After this the process ends, whatever still hangs; who stopped us expects it within 30 s."""


def serve(plan: CheckedConfig, verbose: bool) -> int:
    """Serve until a signal comes. Returns the exit code: 0 after a stop, 1 if nothing could be served or Ray died.

    Raises `ConfigurationError` on what could be seen only now, before or after Ray was started.
    """
    check_environment(os.environ, plan.config)
    check_port_is_free(plan.host, plan.port)
    set_missing(os.environ)
    plan = with_proxy_location(plan, os.environ)
    stop = StopSignal()
    stop.install()
    cluster = Cluster(plan)
    application = ApplicationClient(plan)
    hub = HubClient(plan.app_name)
    console = Console(file=sys.stdout, soft_wrap=True)
    say = _printer(console)
    try:
        with make_display(console) as display:
            workers = _start(plan, cluster, application, display, stop, verbose)
        if workers is not None and not any(worker.ready for worker in workers):
            reasons = "\n".join(f"  {worker.id}: {worker.reason}" for worker in workers)
            raise StartFailed(f"no worker could be started\n{reasons}")
        if workers is not None:
            _announce(plan, application, workers, cluster, say)
            hub.open()
            if not watch(application, cluster.alive, workers, say, stop.wait) and not stop.wait(1.0):
                raise StartFailed("a process of Ray has died, nothing is served any more")
        _stop(cluster, hub, say)
        return 0
    except Stopped:
        say("stopped before anything was served")
        cluster.stop()
        return 0
    except StartFailed as exc:
        logs = cluster.logs()
        say(f"rbee-serve: {exc}" + (f"\nThe logs are in {logs}" if logs else ""))
        cluster.stop()
        return 1
    except ConfigurationError:
        cluster.stop()
        raise
    finally:
        application.close()


def _start(
    plan: CheckedConfig,
    cluster: Cluster,
    application: ApplicationClient,
    display: Display,
    stop: StopSignal,
    verbose: bool,
) -> Workers | None:
    count = len(plan.config.workers)
    display.step("starting Ray")
    cluster.load()
    with stop.interrupting():
        try:
            cluster.start_ray(display.line, verbose)
            stop.install()
            stop.check()
            cluster.check_resources()
            display.step("starting Ray Serve")
            cluster.start_serve()
            stop.check()
        except RuntimeError as exc:
            if stop.asked:  # the signal came in the middle of it
                raise Stopped from exc
            raise StartFailed(str(exc)) from exc
        display.step("starting 1 worker" if count == 1 else f"starting {count} workers")
        cluster.deploy()
    return follow(application, cluster.status, display, stop.wait)


def _announce(
    plan: CheckedConfig, application: ApplicationClient, workers: Workers, cluster: Cluster, say: Callable[[str], None]
) -> None:
    readiness = {worker.id: worker for worker in workers}
    try:
        lines = summary(application.workers(), readiness, plan.config, plan.worker_types)
    except httpx.HTTPError:
        lines = []
    say("\n".join(["", *lines, "", f"  logs: {cluster.logs()}", ""]))
    say(f"serving on {plan.config.public_url or plan.base_url} — Ctrl+C stops it")


def _stop(cluster: Cluster, hub: HubClient, say: Callable[[str], None]) -> None:
    began = time.monotonic()
    last_resort = threading.Timer(LONGEST_STOP_S, lambda: os._exit(0))
    last_resort.daemon = True
    last_resort.start()
    if cluster.alive():
        say("stopping: new requests are refused")
        drain(hub, say)
    else:
        say("stopping: the signal went to Ray's processes too, so running requests were cut; send it to this one only")
    cluster.stop()
    last_resort.cancel()
    say(f"stopped after {time.monotonic() - began:.0f} s")


def _printer(console: Console) -> Callable[[str], None]:
    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    return say
