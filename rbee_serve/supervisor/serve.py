"""`rbee-serve serve`: from a checked file to a drained stop."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

from rich.console import Console

from rbee_serve.client import Client, Unauthorized
from rbee_serve.errors import ConfigurationError, WorkerError
from rbee_serve.ray_settings import set_missing
from rbee_serve.supervisor.application_client import open_client
from rbee_serve.supervisor.checks import CheckedConfig, check_port_is_free
from rbee_serve.supervisor.cluster import Cluster
from rbee_serve.supervisor.display import Display, make_display
from rbee_serve.supervisor.drain import drain
from rbee_serve.supervisor.environment import (
    add_programs_to_path,
    check_environment,
    with_own_token,
    with_proxy_location,
)
from rbee_serve.supervisor.host_requirements import require_host, this_host
from rbee_serve.supervisor.hub_client import HubClient
from rbee_serve.supervisor.join import set_head_port, wait_for_nodes
from rbee_serve.supervisor.monitor import StartFailed, Workers, monitor, wait_for_load
from rbee_serve.supervisor.stop_signal import Stopped, StopSignal
from rbee_serve.supervisor.summary import summary

MAX_STOP_S = 28.0
"""After this the process ends, whatever still hangs; an init system expects the end within 30 s."""


def serve(checked: CheckedConfig, verbose: bool, other_machines: int = 0) -> int:
    """Serve until a signal arrives. Returns the exit code: 0 after a stop, 1 if nothing could be served or Ray died.

    The workers start when `other_machines` have joined.

    Raises `ConfigurationError` on faults that show only now, before or after the start of Ray.
    """
    check_environment(os.environ, checked.config)
    check_port_is_free(checked.host, checked.port)
    require_host(checked, this_host())
    set_missing(os.environ)
    add_programs_to_path(os.environ)
    if other_machines:
        set_head_port(os.environ)
    checked = with_own_token(with_proxy_location(checked, os.environ))
    stop = StopSignal()
    stop.install()
    cluster = Cluster(checked)
    client = open_client(checked)
    hub = HubClient(checked.app_name)
    console = Console(file=sys.stdout, soft_wrap=True)
    show = _printer(console)
    try:
        with make_display(console) as display:
            workers = _start(checked, cluster, client, display, stop, verbose, other_machines)
        if workers is not None and not any(worker.ready for worker in workers):
            reasons = "\n".join(f"  {worker.id}: {worker.reason}" for worker in workers)
            raise StartFailed(f"no worker could be started\n{reasons}")
        if workers is not None:
            _show_summary(checked, client, workers, cluster, show)
            hub.open()
            if not monitor(client, cluster.alive, workers, show, stop.wait) and not stop.wait(1.0):
                raise StartFailed("a process of Ray has died, nothing is served any more")
        _stop(cluster, hub, show)
        return 0
    except Stopped:
        show("stopped before anything was served")
        cluster.exit_while_starting()
    except StartFailed as exc:
        logs = cluster.logs()
        show(f"rbee-serve: {exc}" + (f"\nThe logs are in {logs}" if logs else ""))
        cluster.stop()
        return 1
    except ConfigurationError:
        cluster.stop()
        raise
    finally:
        client.close()


def _start(
    checked: CheckedConfig,
    cluster: Cluster,
    client: Client,
    display: Display,
    stop: StopSignal,
    verbose: bool,
    other_machines: int,
) -> Workers | None:
    count = len(checked.config.workers)
    display.step("starting Ray")
    cluster.load()
    with stop.interrupting():
        try:
            cluster.start_ray(display.line, verbose)
            stop.install()
            stop.check()
            if other_machines:
                wait_for_nodes(other_machines, cluster.nodes, cluster.address(), cluster.alive, display)
            cluster.check_resources()
            display.step("starting Ray Serve")
            cluster.start_serve()
            stop.check()
        except RuntimeError as exc:
            if stop.received:  # the signal broke off the start
                raise Stopped from exc
            raise StartFailed(str(exc)) from exc
        display.step("starting 1 worker" if count == 1 else f"starting {count} workers")
        cluster.deploy()
    return wait_for_load(client, cluster.status, display, stop.wait)


def _show_summary(
    checked: CheckedConfig, client: Client, workers: Workers, cluster: Cluster, show: Callable[[str], None]
) -> None:
    readiness = {worker.id: worker for worker in workers}
    try:
        lines = summary(client.workers(), readiness, checked.config, checked.worker_types)
    except (WorkerError, Unauthorized):
        lines = []
    show("\n".join(["", *lines, "", f"  logs: {cluster.logs()}", ""]))
    show(f"serving on {checked.config.public_url or checked.base_url} — Ctrl+C stops it")


def _stop(cluster: Cluster, hub: HubClient, show: Callable[[str], None]) -> None:
    began = time.monotonic()
    last_resort = threading.Timer(MAX_STOP_S, lambda: os._exit(0))
    last_resort.daemon = True
    last_resort.start()
    if cluster.alive():
        show("stopping: new requests are refused")
        drain(hub, show)
    else:
        show(
            "stopping: Ray's processes received the signal too, so running requests were cut; send it to this one only"
        )
    cluster.stop()
    last_resort.cancel()
    show(f"stopped after {time.monotonic() - began:.0f} s")


def _printer(console: Console) -> Callable[[str], None]:
    def show(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    return show
