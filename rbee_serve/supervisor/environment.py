"""Environment variables that count only if they are set before Ray starts. What a person has set stays."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from typing import NamedTuple

from rbee_serve.config import ApplicationConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.supervisor.checks import Plan


class Setting(NamedTuple):
    """A variable, its value and the reason."""

    name: str
    value: str
    why: str


SETTINGS = (
    Setting("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1", "three times the events per second"),
    Setting(
        "RAY_SERVE_ENABLE_DIRECT_INGRESS",
        "0",
        "the first setting has Ray open a port of its own for each ingress, and start a proxy whatever the file says",
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
    ),
    Setting(
        "RAY_enable_metrics_collection",
        "false",
        "every process of Ray counts what it does for a dashboard that is not there, for 4 % of a core in all",
    ),
    Setting("RAY_worker_niceness", "0", "Ray runs its workers at nice 15, behind whatever else the machine does"),
    Setting("OMP_WAIT_POLICY", "PASSIVE", "threads that wait for work leave the cores to other processes"),
    Setting("GOMP_SPINCOUNT", "20000", "but not within a batch, where a thread that sleeps is woken for each layer"),
    Setting("RAY_AUTH_MODE", "token", "Ray's own ports are open to the network: who has no token may not use them"),
    Setting("RAY_USAGE_STATS_ENABLED", "0", "nobody is told what is run"),
    Setting("RAY_DEDUP_LOGS", "0", "two workers that report the same fault are two reports"),
)
"""What Ray's defaults are changed to."""


def prepare(environ: MutableMapping[str, str]) -> None:
    """Put `SETTINGS` into the environment, where a variable is not set already."""
    for setting in SETTINGS:
        environ.setdefault(setting.name, setting.value)


def with_proxy_location(plan: Plan, environ: Mapping[str, str]) -> Plan:
    """The plan, which now says where Serve's proxies run. Unless the file says it, or something needs them, that is
    nowhere: the ingress listens itself, and a request has one hop less."""
    needed = plan.needs_proxies or environ.get("RAY_SERVE_ENABLE_HA_PROXY", "0") == "1"
    return replace(plan, document={"proxy_location": "EveryNode" if needed else "Disabled", **plan.document})


def check_environment(environ: Mapping[str, str], config: ApplicationConfig) -> None:
    """Without a token we serve this machine only. Raise `ConfigurationError` on settings of Ray that undo that."""
    if config.auth.token_file is not None:
        return
    if environ.get("RAY_SERVE_ENABLE_HA_PROXY", "0") == "1":
        raise ConfigurationError(
            "RAY_SERVE_ENABLE_HA_PROXY=1 listens on all interfaces whatever http_options.host says: "
            "set auth.token_file, or unset the variable"
        )
    if environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        raise ConfigurationError(
            f"RAY_AUTH_MODE={environ['RAY_AUTH_MODE']} opens Ray's own ports to the network: "
            "set auth.token_file, or unset the variable"
        )
