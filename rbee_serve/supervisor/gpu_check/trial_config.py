"""The configurations of the trials: one worker of a file alone, or all of them, on this machine only."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rbee_serve.config import ApplicationConfig
from rbee_serve.supervisor.checks import CheckedConfig

HOST = "127.0.0.1"
_LEFT_OUT = frozenset({"auth", "orchestrator", "tls", "public_url"})
"""Arguments of the application that a trial has no use for: nobody else may reach it, and no orchestrator is to route
requests to it."""
_CERTIFICATE = ("ssl_certfile", "ssl_keyfile", "ssl_keyfile_password", "ssl_ca_certs")


def with_helpers(worker_id: str, config: ApplicationConfig) -> list[str]:
    """The worker, and those that it uses, directly or through others."""
    found: list[str] = []
    waiting = [worker_id]
    while waiting:
        if (current := waiting.pop(0)) not in found:
            found.append(current)
            worker = config.worker(current)
            assert worker is not None
            waiting += worker.uses.values()
    return found


def trial_config(checked: CheckedConfig, worker_ids: Collection[str], port: int) -> dict[str, Any]:
    """The Ray Serve file with those workers only, on a loopback port; other applications are left out."""
    application = next(
        each for each in checked.document["applications"] if str(each.get("name", "default")) == checked.app_name
    )
    args = {name: value for name, value in application["args"].items() if name not in _LEFT_OUT}
    args["workers"] = [worker for worker in args["workers"] if worker["id"] in worker_ids]
    overrides = [
        each for each in application.get("deployments") or () if each["name"] in {*worker_ids, "hub", "ingress"}
    ]
    http = {name: value for name, value in checked.document["http_options"].items() if name not in _CERTIFICATE}
    kept = {name: value for name, value in checked.document.items() if name not in ("applications", "proxy_location")}
    trial = {**application, "args": args, "route_prefix": "/"}
    if overrides:
        trial["deployments"] = overrides
    else:
        trial.pop("deployments", None)
    return {**kept, "http_options": {**http, "host": HOST, "port": port}, "applications": [trial]}
