"""Environment variables that Ray reads when it starts, and no later.

`rbee-serve serve` sets them. Whoever starts Ray in another way is told which of those that cost speed are missing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

logger = logging.getLogger(__name__)


class Setting(NamedTuple):
    """A variable, its value and the reason. `speed`: without it the application is slower or the machine busier, or it
    belongs to such a one."""

    name: str
    value: str
    why: str
    speed: bool = False


SETTINGS = (
    Setting(
        "RAY_SERVE_THROUGHPUT_OPTIMIZED",
        "1",
        "one event loop in each replica, and a log that is buffered: a third less CPU time for each request",
        speed=True,
    ),
    Setting(
        "RAY_SERVE_ENABLE_DIRECT_INGRESS",
        "0",
        "the first setting has Ray open a port of its own for each ingress, and start a proxy whatever the file says",
        speed=True,
    ),
    Setting(
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S",
        "0",
        "no load balancer has to be told: the supervisor waits for requests itself; the default adds 30 s to each stop",
    ),
    Setting(
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS",
        "1",
        "a replica that hangs does not hear that it is to stop: the default waits 15 s for it before it is replaced",
    ),
    Setting(
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH",
        "rbee_serve.ingress.ray_headers:middlewares",
        "Ray answers 500 to some headers, and cuts streams for others",
    ),
    Setting(
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S",
        "0.5",
        "Serve's controller looks at everything ten times a second, for 4 % of a core; twice is enough",
        speed=True,
    ),
    Setting(
        "RAY_enable_metrics_collection",
        "false",
        "every process of Ray counts what it does for a dashboard that is not there, for 4 % of a core in all",
        speed=True,
    ),
    Setting(
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS",
        "10000",
        "Serve adds those counts up ten times a second, for each deployment and each handle to one",
        speed=True,
    ),
    Setting(
        "RAY_task_events_report_interval_ms",
        "0",
        "every process of Ray tells once a second which calls it has made, for lists that nobody reads",
        speed=True,
    ),
    Setting(
        "RAY_worker_niceness",
        "0",
        "Ray runs its workers at nice 15, behind whatever else the machine does",
        speed=True,
    ),
    Setting("OMP_WAIT_POLICY", "PASSIVE", "threads that wait for work leave the cores to other processes"),
    Setting("GOMP_SPINCOUNT", "20000", "but not within a batch, where a thread that sleeps is woken for each layer"),
    Setting("RAY_AUTH_MODE", "token", "Ray's own ports are open to the network: who has no token may not use them"),
    Setting("RAY_USAGE_STATS_ENABLED", "0", "nobody is told what is run"),
    Setting("RAY_DEDUP_LOGS", "0", "two workers that report the same fault are two reports"),
)
"""What Ray's defaults are changed to."""


def warn_of_missing(environ: Mapping[str, str]) -> None:
    """Say in one line of the log which settings for speed Ray was started without, and what to do.

    One that is set to something else is not missing: somebody has decided so.
    """
    missing = [setting for setting in SETTINGS if setting.speed and setting.name not in environ]
    if missing:
        logger.warning(
            "Ray was started without settings for speed, which count only before it starts: "
            "use `rbee-serve serve FILE`, or first export %s",
            " ".join(f"{setting.name}={setting.value}" for setting in missing),
        )
