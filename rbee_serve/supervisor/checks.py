"""The validation of `serve_config.yaml` before Ray starts.

The file is an ordinary Ray Serve one, so it is validated against Ray Serve's keys (`serve_schema.py`). The `args:` of
the rbee-serve application are validated by the module that builds it. The file's `import_path` names that module, which
has, beside the builder:

    check(args, host) -> ApplicationConfig      raises ConfigurationError
    WORKER_TYPES: Mapping[str, str]             the import strings of worker types by name
"""

from __future__ import annotations

import errno
import importlib
import re
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rbee_serve.config import ApplicationConfig, parse_mapping
from rbee_serve.config.tls import context_of_files
from rbee_serve.errors import ConfigurationError
from rbee_serve.supervisor.serve_schema import HttpOptions, ServeFile
from rbee_serve.supervisor.yaml_file import YamlFile, read_yaml

TLS_NEEDS_OWN_LISTENER = (
    "Ray's proxy listens here, and not the ingress; use http_options.ssl_certfile and ssl_keyfile instead"
)
OWN_DEPLOYMENTS = ("hub", "ingress")
REQUEST_LIMITS = frozenset({"max_ongoing_requests", "max_queued_requests"})
"""Options of a Serve deployment that follow from the worker's own settings of these names."""


@dataclass(frozen=True, slots=True)
class CheckedConfig:
    """A file that has passed the validation."""

    path: Path
    document: dict[str, Any]
    """The file's content for Ray Serve, with the host filled in."""
    app_name: str
    base_url: str
    """Where the application is reached on this machine."""
    host: str
    port: int
    config: ApplicationConfig
    worker_types: Mapping[str, str]
    needs_proxies: bool
    """Whether the file needs Serve's proxies: for other applications, a prefix, or gRPC."""
    token: bytes | None = None
    """The supervisor's own token, where requests need one; see `with_own_token`."""


def check_file(path: Path) -> CheckedConfig:
    """Read and validate a configuration. Raises `ConfigurationError`, one line for each fault."""
    file = read_yaml(path)
    try:
        serve = parse_mapping(ServeFile, file.data)
    except ConfigurationError as exc:
        raise ConfigurationError("\n".join(_located(file, "", str(exc)))) from None
    http, options = file.data.get("http_options") or {}, serve.http_options or HttpOptions()
    host, port = options.host, options.port

    where, application, module = _find_application(file)
    config = _checked_arguments(file, where, application.get("args"), host, module)
    _check_overrides(file, where, application, config)
    _check_certificate(file, where, http, config)
    document = {**file.data, "http_options": {**http, "host": host, "port": port}}
    scheme = "https" if config.tls or http.get("ssl_certfile") else "http"
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    address = f"[{reached}]" if ":" in reached else reached
    prefix = str(application.get("route_prefix") or "/").rstrip("/")
    return CheckedConfig(
        path=path,
        document=document,
        app_name=str(application.get("name", "default")),
        base_url=f"{scheme}://{address}:{port}{prefix}",
        host=host,
        port=port,
        config=config,
        worker_types=getattr(module, "WORKER_TYPES", {}),
        needs_proxies=bool(prefix) or len(file.data["applications"]) > 1 or "grpc_options" in file.data,
    )


def _check_certificate(file: YamlFile, where: str, http: dict[str, Any], config: ApplicationConfig) -> None:
    """Only what listens may have a certificate: `tls` is for the ingress, `http_options` for Ray's proxy as well."""
    cert = http.get("ssl_certfile")
    if cert is None:
        if key := http.get("ssl_keyfile"):
            raise file.error("http_options.ssl_keyfile", f"{key} needs ssl_certfile, the certificate, beside it")
    elif config.tls is not None:
        raise file.error(
            f"{where}.args.tls", "http_options.ssl_certfile names a certificate too; remove one of the two"
        )
    else:
        try:
            context_of_files(cert, http.get("ssl_keyfile"), http.get("ssl_keyfile_password"), http.get("ssl_ca_certs"))
        except ConfigurationError as exc:
            key, _, sentence = str(exc).partition(": ")
            raise file.error(key, sentence) from None
    if config.tls is not None and file.data.get("proxy_location", "Disabled") != "Disabled":
        raise file.error(f"{where}.args.tls", TLS_NEEDS_OWN_LISTENER)


def check_port_is_free(host: str, port: int) -> None:
    """Raise `ConfigurationError` if the port cannot be bound. Ray itself would silently share it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except PermissionError:
        raise ConfigurationError(f"port {port} needs root; set http_options.port to one above 1023") from None
    except socket.gaierror:
        raise ConfigurationError(f"http_options.host: {host} is not a known name or address") from None
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"port {port} on {host} is taken by another program; stop it, or set http_options.port to a free one"
            ) from None
        raise ConfigurationError(f"http_options.host: this machine cannot listen on {host}: {exc.strerror}") from None


def _find_application(file: YamlFile) -> tuple[str, dict[str, Any], ModuleType]:
    """Path, content and builder module of the rbee-serve application; the file may have others too."""
    found: list[tuple[str, dict[str, Any], ModuleType]] = []
    for index, application in enumerate(file.data["applications"]):
        where = f"applications[{index}]"
        import_path = application["import_path"]
        module = _import_builder(file, f"{where}.import_path", import_path)
        if hasattr(module, "check"):
            found.append((where, application, module))
    if not found:
        raise file.error("applications", "none has a builder of rbee-serve; import_path is deployments.app:build_app")
    if len(found) > 1:
        raise file.error(found[1][0], "is the second application of rbee-serve; move its workers into the first")
    return found[0]


def _import_builder(file: YamlFile, where: str, import_path: str) -> ModuleType:
    name = import_path.partition(":")[0] if ":" in import_path else import_path.rpartition(".")[0]
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `serve run` does
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name and (name == exc.name or name.startswith(f"{exc.name}.")):
            sentence = f"there is no module {exc.name} here or in the environment"
            if shadow := next(iter(getattr(sys.modules.get(name.partition(".")[0]), "__path__", ())), None):
                sentence += f"; the package {name.partition('.')[0]} was found in {shadow}"
            raise file.error(where, sentence) from None
        raise file.error(where, f"{name} cannot be imported: {_fault(exc)}") from exc
    except Exception as exc:
        raise file.error(where, f"{name} cannot be imported: {_fault(exc)}") from exc
    if not hasattr(module, import_path.replace(":", ".").rpartition(".")[2]):
        raise file.error(where, f"{name} has no {import_path.replace(':', '.').rpartition('.')[2]}")
    return module


def _checked_arguments(file: YamlFile, where: str, args: Any, host: str, module: ModuleType) -> ApplicationConfig:
    try:
        config = module.check(args if args is not None else {}, host)
    except ConfigurationError as exc:
        raise ConfigurationError("\n".join(_located(file, f"{where}.args", str(exc)))) from None
    except Exception as exc:  # the `check` of a worker type from another package raised
        raise file.error(f"{where}.args", f"cannot be checked: {_fault(exc)}") from exc
    assert isinstance(config, ApplicationConfig)
    return config


def _located(file: YamlFile, where: str, message: str) -> Iterator[str]:
    """Each line of a message, prefixed with the line number of its key."""
    for line in message.splitlines():
        key, colon, sentence = line.partition(": ")
        if colon and re.fullmatch(r"[\w.\[\]-]+", key):
            yield str(file.error(where if key == "args" else f"{where}.{key}".removeprefix("."), sentence))
        else:
            yield f"{file.path}: {line}"


def _check_overrides(file: YamlFile, where: str, application: dict[str, Any], config: ApplicationConfig) -> None:
    """`deployments:` are Serve's own overrides. Each must name a deployment and leave the limits on requests alone."""
    workers = [worker.id for worker in config.workers]
    known = [*workers, *OWN_DEPLOYMENTS]
    for index, override in enumerate(application.get("deployments") or ()):
        at = f"{where}.deployments[{index}]"
        name = override.get("name") if isinstance(override, dict) else None
        if name not in known:
            raise file.error(f"{at}.name", f"{name!r} is none of the deployments {', '.join(known)}")
        for key in sorted(REQUEST_LIMITS.intersection(override)):
            hint = f"set {key} of the worker {name} under args.workers" if name in workers else "remove the key"
            raise file.error(f"{at}.{key}", f"is derived by rbee-serve and cannot be overridden; {hint}")


def _fault(exc: BaseException) -> str:
    """The exception of a foreign module and its location: for the operator, never for a client."""
    frames = traceback.extract_tb(exc.__traceback__)
    at = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(exc).__name__}: {exc}{at}"
