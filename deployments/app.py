"""Builds the Ray Serve application from the `args:` of `serve_config.yaml`.

ingress ──→ one deployment per worker, named by its id
   └──────→ hub ←── every worker replica
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from deployments.registry import WORKER_TYPES
from rbee_serve import correlation
from rbee_serve.config import LOCAL_HOSTS, ApplicationConfig, WorkerConfig, parse_application
from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.model_ref import parse_model_ref
from rbee_serve.placement import placement_order
from rbee_serve.ray_settings import replica_environment, warn_of_missing
from rbee_serve.validation.parse import with_limits
from rbee_serve.worker.gpu_rules import gpu_faults
from rbee_serve.worker.registry import import_path, load_spec
from rbee_serve.worker.spec import WorkerSpec

if TYPE_CHECKING:
    from ray.serve.config import HTTPOptions

    from rbee_serve.ingress.listener import Address

logger = logging.getLogger(__name__)


def check(args: Any, host: str) -> ApplicationConfig:
    """The configuration, if it can be served on `host` of this machine.

    Raises `ConfigurationError` with every fault that is visible before anything starts, one line for each, by path.
    Needs neither Ray nor a loaded model.
    """
    config = _configuration(args, host)
    faults = []
    if config.tls is not None:
        config.tls.context()
    for index, worker in enumerate(config.workers):
        spec = _spec(worker)
        try:
            if spec.check is not None:
                spec.check(worker)
        except ConfigurationError as exc:
            faults.append(f"workers[{index}].{exc}")
    if faults:
        raise ConfigurationError("\n".join(faults))
    return config


def _configuration(args: Any, host: str) -> ApplicationConfig:
    config = parse_application(args)
    if config.orchestrator is not None:
        config.orchestrator.check()
    if not config.auth.required and host not in LOCAL_HOSTS:
        raise ConfigurationError(
            f"http_options.host is {host}, but without a token the server answers on 127.0.0.1 only; set "
            "auth.token_file or auth.keys, or that host"
        )
    faults = [
        *config.auth.faults({worker.id for worker in config.workers}),
        *(
            f"workers[{n}].{fault}"
            for n, worker in enumerate(config.workers)
            for fault in (*_faults(worker), *_faults_of_uses(worker, config))
        ),
    ]
    if faults:
        raise ConfigurationError("\n".join(faults))
    return config


def _spec(worker: WorkerConfig) -> WorkerSpec[Any]:
    return load_spec(import_path(worker.type, worker.task, WORKER_TYPES))


def _faults(worker: WorkerConfig) -> Iterator[str]:
    """The faults of a worker's configuration, each with its key."""
    try:
        spec = _spec(worker)
    except ConfigurationError as exc:
        yield str(exc)
        return
    if spec.needs_model and worker.model_ref is None:
        yield "model_ref: is missing; use hf:ORG/NAME, file:PATH or pkg:PACKAGE/PATH"
    if worker.model_ref is not None:
        try:
            parse_model_ref(worker.model_ref)
        except ConfigurationError as exc:
            yield f"model_ref: {str(exc).removeprefix('model_ref: ')}"
    yield from gpu_faults(worker, spec)
    try:
        with_limits(spec.request, worker.limits)
    except ConfigurationError as exc:
        yield str(exc)


def _faults_of_uses(worker: WorkerConfig, config: ApplicationConfig) -> Iterator[str]:
    """The faults in `uses`. A helper worker cannot have helpers, which rules out deadlock."""
    try:
        roles = _spec(worker).roles
        types = {other.id: import_path(other.type, other.task, WORKER_TYPES) for other in config.workers}
    except ConfigurationError:  # already reported by `_faults`
        return
    for role, worker_id in worker.uses.items():
        if role not in roles:
            known = ", ".join(roles) or "none"
            yield f"uses.{role}: a {worker.type} worker has no such role; it has {known}"
        elif worker_id not in types:
            yield f"uses.{role}: no worker has the id {worker_id}"
        elif types[worker_id] != WORKER_TYPES.get(roles[role], roles[role]):
            yield f"uses.{role}: {worker_id} is not of the type {roles[role]}"


def build_app(args: dict[str, Any]) -> Any:
    """The Ray Serve application for `import_path: deployments.app:build_app`.

    Where Serve runs no proxies (`proxy_location: Disabled`), the ingress itself listens at `http_options`. Ray Serve
    calls this each time the file is deployed, in a process with Ray's environment: missing settings for speed are
    logged.
    """
    correlation.configure_logging()
    warn_of_missing(os.environ)
    http, proxied = _http_options()
    return application(args, http, None if proxied else _address(http))


def application(args: Any, http: HTTPOptions, address: Address | None) -> Any:
    """The Ray Serve application, whose ingress listens at `address` if that is given. `http` is the address for
    clients."""
    from ray import serve

    from rbee_serve.hub.deployment import Hub
    from rbee_serve.ingress.deployment import Ingress
    from rbee_serve.replica.deployment import WorkerReplica

    host, port = str(http.host), http.port
    config = _configuration(args, host)
    for warning in config.warnings():
        logger.warning("%s", warning)
    if config.tls is not None and (address is None or http.ssl_certfile is not None):
        raise ConfigurationError(
            "tls: is for a server without Ray's proxies and without http_options.ssl_certfile; use either"
        )
    scheme = "https" if config.tls is not None or http.ssl_certfile is not None else "http"
    base_url = config.public_url or f"{scheme}://{'127.0.0.1' if host in LOCAL_HOSTS else host}:{port}"
    spec_paths = {worker.id: import_path(worker.type, worker.task, WORKER_TYPES) for worker in config.workers}
    implementations = {worker_id: load_spec(path).name for worker_id, path in spec_paths.items()}
    quiet = {"enable_access_log": False}
    own_options = {"num_cpus": 0, "resources": {} if address is None else ON_THE_HEAD}

    hub = serve.deployment(Hub).options(
        name="hub",
        num_replicas=1,
        max_ongoing_requests=10_000,
        ray_actor_options=own_options,
        health_check_period_s=5,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=3,
        graceful_shutdown_wait_loop_s=0.2,
        logging_config=quiet,
    ).bind(config, implementations, base_url, port)  # fmt: skip
    workers: dict[str, Any] = {}
    for worker in placement_order(config.workers):
        path = spec_paths[worker.id]
        workers[worker.id] = serve.deployment(WorkerReplica).options(
            **_worker_options(worker, load_spec(path)), logging_config=quiet
        ).bind(worker, path, hub, {role: workers[worker_id] for role, worker_id in worker.uses.items()})  # fmt: skip
    ingress = serve.deployment(serve.ingress()(Ingress)).options(
        name="ingress",
        num_replicas=config.ingress_replicas,
        max_ongoing_requests=10_000,
        ray_actor_options=own_options,
        graceful_shutdown_timeout_s=3,
        graceful_shutdown_wait_loop_s=0.2,
        logging_config=quiet,
    )  # fmt: skip
    return ingress.bind(config, spec_paths, base_url, port, hub, workers, address)


ON_THE_HEAD = {"node:__internal_head__": 0.001}
"""The resource that only Ray's head has. An ingress that listens itself stays there, where clients know its address,
and so does the hub, which may read the orchestrator's token file."""

CONTROL_RESERVE = 32
"""Calls that Ray Serve admits to a replica beyond the running and the queued requests, so that the replica, and not
Serve, refuses the surplus."""


def _worker_options(worker: WorkerConfig, spec: WorkerSpec[Any]) -> dict[str, Any]:
    running = worker.max_ongoing_requests or spec.default_max_ongoing_requests
    environment = replica_environment(os.environ)
    if not worker.gpus:  # Ray leaves all GPUs visible to it, and some libraries would take the first one
        environment["CUDA_VISIBLE_DEVICES"] = ""
    if worker.threads is not None:
        environment["OMP_NUM_THREADS"] = str(worker.threads)
    options: dict[str, Any] = {
        "name": worker.id,
        "max_ongoing_requests": running + worker.max_queued_requests + CONTROL_RESERVE,
        "ray_actor_options": {
            "num_cpus": worker.cpus,
            "num_gpus": worker.gpus,
            "runtime_env": {"env_vars": environment},
        },
        # A model that cannot be loaded will not load the second time either: report the reason once.
        "max_constructor_retry_count": 1,
        # Serve's own 10 s, 30 s and three failures would leave a hung engine in service for 90 s.
        "health_check_period_s": 5,
        "health_check_timeout_s": 5,
        "graceful_shutdown_timeout_s": 15,
        "graceful_shutdown_wait_loop_s": 0.2,
    }
    if worker.autoscaling is not None:
        options["autoscaling_config"] = worker.autoscaling.model_dump(exclude_unset=True)
    else:
        options["num_replicas"] = worker.replicas
    return options


def _http_options() -> tuple[HTTPOptions, bool]:
    """The HTTP options of this server, and whether Serve's proxies run. Serve has both before it reads the arguments,
    and exposes them in its internal client object only."""
    import ray
    from ray.serve.config import ProxyLocation
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    location = ray.get(client._controller.get_proxy_location.remote())
    return client.http_config, location != ProxyLocation.Disabled


def _address(http: HTTPOptions) -> Address:
    from rbee_serve.ingress.listener import Address

    return Address(**{field.name: getattr(http, field.name) for field in fields(Address)})
