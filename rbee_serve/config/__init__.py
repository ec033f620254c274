"""The configuration, parsed once when the application is built.

`serve_config.yaml` is an ordinary Ray Serve file; its `applications[].args` are an `ApplicationConfig`. An unknown key
anywhere is an error that names its path and the nearest known key. No other module reads a dict of settings.
"""

from __future__ import annotations

from rbee_serve.config.application import LOCAL_HOSTS, ApplicationConfig
from rbee_serve.config.auth import AuthConfig, KeyConfig
from rbee_serve.config.autoscaling import AutoscalingConfig
from rbee_serve.config.cors import CorsConfig
from rbee_serve.config.limits import LimitsConfig
from rbee_serve.config.orchestrator import OrchestratorConfig
from rbee_serve.config.parse import parse_application, parse_engine, parse_mapping, unknown_key
from rbee_serve.config.tls import TlsConfig
from rbee_serve.config.worker import Backend, WorkerConfig, WorkerId

__all__ = [
    "LOCAL_HOSTS",
    "ApplicationConfig",
    "AuthConfig",
    "AutoscalingConfig",
    "Backend",
    "CorsConfig",
    "KeyConfig",
    "LimitsConfig",
    "OrchestratorConfig",
    "TlsConfig",
    "WorkerConfig",
    "WorkerId",
    "parse_application",
    "parse_engine",
    "parse_mapping",
    "unknown_key",
]
