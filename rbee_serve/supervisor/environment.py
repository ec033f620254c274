"""What is put into the environment before Ray starts, and what a person has put there. That stays."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import replace

from rbee_serve.config import ApplicationConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.ray_settings import SETTINGS
from rbee_serve.supervisor.checks import CheckedConfig


def prepare(environ: MutableMapping[str, str]) -> None:
    """Put `SETTINGS` into the environment, where a variable is not set already."""
    for setting in SETTINGS:
        environ.setdefault(setting.name, setting.value)


def with_proxy_location(plan: CheckedConfig, environ: Mapping[str, str]) -> CheckedConfig:
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
