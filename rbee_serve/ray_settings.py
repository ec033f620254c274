"""The environment variables of Ray, Ray Serve and the replicas: the one place where they are set.

Ray reads them when it starts, and no later. `rbee-serve serve` sets them. If Ray was started in another way, the log
lists the missing ones that cost speed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, MutableMapping
from typing import NamedTuple

logger = logging.getLogger(__name__)


class Setting(NamedTuple):
    """A variable, its value and the reason. `speed`: without it the application is slower or the machine busier, or it
    belongs to such a setting."""

    name: str
    value: str
    why: str
    speed: bool = False


SETTINGS = (
    Setting(
        "RAY_SERVE_THROUGHPUT_OPTIMIZED",
        "1",
        "one event loop in each replica, and a buffered log: a third less CPU time for each request",
        speed=True,
    ),
    Setting(
        "RAY_SERVE_ENABLE_DIRECT_INGRESS",
        "0",
        "with the first setting alone Ray opens a port for each ingress, and starts a proxy whatever the file says",
        speed=True,
    ),
    Setting(
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S",
        "0",
        "there is no load balancer to drain: the supervisor waits for requests; the default adds 30 s to each stop",
    ),
    Setting(
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS",
        "1",
        "a hung replica does not react to a stop: the default waits 15 s for it before it is replaced",
    ),
    Setting(
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH",
        "rbee_serve.ingress.ray_headers:middlewares",
        "Ray responds with 500 to some request headers, and truncates streams for others",
    ),
    Setting(
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S",
        "0.5",
        "Serve's controller runs its loop ten times a second, for 4 % of a core; twice is enough",
        speed=True,
    ),
    Setting(
        "RAY_enable_metrics_collection",
        "false",
        "every process of Ray collects metrics for a dashboard that does not run, for 4 % of a core in all",
        speed=True,
    ),
    Setting(
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS",
        "10000",
        "Serve aggregates those metrics ten times a second, for each deployment and each handle to one",
        speed=True,
    ),
    Setting(
        "RAY_task_events_report_interval_ms",
        "0",
        "every process of Ray reports its calls once a second, for lists that nothing reads",
        speed=True,
    ),
    Setting(
        "RAY_worker_niceness",
        "0",
        "Ray runs its workers at nice 15, behind every other process of the machine",
        speed=True,
    ),
    Setting(
        "RAY_AUTH_MODE", "token", "Ray's own ports are open to the network: only clients with a token may use them"
    ),
    Setting("RAY_USAGE_STATS_ENABLED", "0", "no usage reports are sent"),
    Setting("RAY_DEDUP_LOGS", "0", "two workers that log the same fault are two reports"),
)
"""Ray's and Ray Serve's defaults that are changed."""

REPLICA_SETTINGS = (
    Setting("OMP_WAIT_POLICY", "PASSIVE", "threads that wait for work leave the cores to other processes"),
    Setting("GOMP_SPINCOUNT", "20000", "but not within a batch, where a sleeping thread would be woken for each layer"),
    Setting(
        "CUDA_DEVICE_ORDER",
        "PCI_BUS_ID",
        "by default CUDA numbers the fastest GPU first, and the driver, which reports their memory, by their slots",
    ),
)
"""Variables of each worker's replicas and their engines. They are part of the application, so they count on every node
and however Ray was started."""


def set_missing(environ: MutableMapping[str, str], leave_out: Collection[str] = ()) -> None:
    """Set every variable of `SETTINGS` that `environ` does not have yet, except those named in `leave_out`."""
    for setting in SETTINGS:
        if setting.name not in leave_out:
            environ.setdefault(setting.name, setting.value)


def replica_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that a worker's replicas get with the application, whatever Ray on their node was started with:
    `REPLICA_SETTINGS`, and Serve's settings as `environ` has them, the environment of the process that builds it."""
    of_serve = [setting.name for setting in SETTINGS if setting.name.startswith("RAY_SERVE_")]
    return {
        **{setting.name: setting.value for setting in REPLICA_SETTINGS},
        **{name: environ[name] for name in of_serve if name in environ},
    }


def warn_of_missing(environ: Mapping[str, str]) -> None:
    """Log in one line which settings for speed Ray was started without, and what to do.

    A setting with another value is not missing: the user has chosen it.
    """
    missing = [setting for setting in SETTINGS if setting.speed and setting.name not in environ]
    if missing:
        logger.warning(
            "Ray was started without settings for speed, which must be set before it starts: "
            "use `rbee-serve serve FILE`, or first export %s",
            " ".join(f"{setting.name}={setting.value}" for setting in missing),
        )
