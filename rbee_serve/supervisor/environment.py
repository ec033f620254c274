"""Settings of the environment that the supervisor checks or derives before Ray starts."""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from pathlib import Path

from rbee_serve.config import ApplicationConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.port_range import port_range
from rbee_serve.supervisor.checks import TLS_NEEDS_OWN_LISTENER, CheckedConfig

_NOSET = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
"""With it Ray does not set `CUDA_VISIBLE_DEVICES`. Ray reads `1` and `true` as yes."""


def with_proxy_location(checked: CheckedConfig, environ: Mapping[str, str]) -> CheckedConfig:
    """The configuration with the location of Serve's proxies. Unless the file sets it, or proxies are needed, there are
    none: the ingress listens itself, and a request has one hop less. Raises `ConfigurationError` if only the ingress
    could serve what the file wants."""
    needed = checked.needs_proxies or environ.get("RAY_SERVE_ENABLE_HA_PROXY", "0") == "1"
    if needed and checked.config.tls is not None:
        raise ConfigurationError(f"tls: {TLS_NEEDS_OWN_LISTENER}")
    return replace(checked, document={"proxy_location": "EveryNode" if needed else "Disabled", **checked.document})


def with_own_token(checked: CheckedConfig) -> CheckedConfig:
    """The configuration with a key for the supervisor itself, where requests need one. It may use all workers, and
    remains valid when other keys are replaced. The token is random, so the application's arguments, which Ray's
    dashboard shows, may hold its SHA-256."""
    if not checked.config.auth.required:
        return checked
    token = secrets.token_hex(32).encode()
    added = {"supervisor_sha256": hashlib.sha256(token).hexdigest()}
    applications = [
        {**application, "args": {**application["args"], "auth": {**application["args"]["auth"], **added}}}
        if str(application.get("name", "default")) == checked.app_name
        else application
        for application in checked.document["applications"]
    ]
    return replace(checked, document={**checked.document, "applications": applications}, token=token)


def mig_instances(environ: Mapping[str, str]) -> int | None:
    """How many GPUs Ray has to be given where `CUDA_VISIBLE_DEVICES` lists MIG instances: by itself it counts whole
    GPUs. None where Ray counts right."""
    ids = environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return len(ids) if all(gpu_id.startswith("MIG-") for gpu_id in ids) else None


def add_programs_to_path(environ: MutableMapping[str, str]) -> None:
    """Put the programs of this Python environment first in `PATH`, as its activation would. Model libraries call some
    of them, such as ninja to compile kernels."""
    programs = str(Path(sys.executable).parent)
    folders = environ.get("PATH", os.defpath).split(os.pathsep)
    if programs not in folders:
        environ["PATH"] = os.pathsep.join([programs, *folders])


def check_environment(environ: Mapping[str, str], config: ApplicationConfig) -> None:
    """Raise `ConfigurationError` on a wrong range of ports, and on a setting of Ray by which workers do not get the
    GPUs that they were assigned, or that opens a port to the network although no token is set."""
    port_range(environ)
    if any(worker.gpus for worker in config.workers) and environ.get(_NOSET, "").lower() in ("1", "true"):
        raise ConfigurationError(f"{_NOSET}={environ[_NOSET]} puts every worker on the first GPU: unset the variable")
    if config.auth.required:
        return
    if environ.get("RAY_SERVE_ENABLE_HA_PROXY", "0") == "1":
        raise ConfigurationError(
            "RAY_SERVE_ENABLE_HA_PROXY=1 listens on all interfaces whatever http_options.host is: "
            "set auth.token_file, or unset the variable"
        )
    mode = environ.get("RAY_AUTH_MODE")
    if mode is not None and mode.lower() != "token":
        raise ConfigurationError(
            f"RAY_AUTH_MODE={mode} opens Ray's own ports to the network: set auth.token_file, or unset the variable"
        )
