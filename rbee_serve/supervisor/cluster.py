"""Ray and Ray Serve, started in this process the way `serve run --address local` does it."""

from __future__ import annotations

import importlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rbee_serve.errors import ConfigurationError
from rbee_serve.supervisor.checks import CheckedConfig
from rbee_serve.supervisor.log_folder import LogReader
from rbee_serve.supervisor.reaper import start_reaper
from rbee_serve.supervisor.resources import shortage
from rbee_serve.supervisor.worker_output import show_worker_output

T = TypeVar("T")

RAY_START_S = 180.0
"""How long Ray's processes may take to find each other."""
SERVE_SHUTDOWN_S = 6.0
"""How long Serve may take to end its replicas before Ray is stopped under it."""
RAY_SHUTDOWN_S = 6.0
"""How long Ray may take. What it leaves the kernel ends with us."""


@dataclass(frozen=True, slots=True)
class DeployStatus:
    """What Ray Serve says of the application."""

    failed: bool = False
    """Serve has given up on at least one deployment, or the application could not be built."""
    message: str = ""
    failures: Mapping[str, str] = field(default_factory=dict)
    """The deployments that Serve has given up, and why."""
    hints: Mapping[str, str] = field(default_factory=dict)
    """What Serve says of those that it waits for."""


class Cluster:
    """A Ray of our own with one Serve on it. Its methods are called in the order in which they stand."""

    def __init__(self, plan: CheckedConfig) -> None:
        self._plan = plan
        self._client: Any = None
        self._reaper: Any = None
        self._output: LogReader | None = None

    def load(self) -> None:
        """Import Ray, which takes seconds and must not be broken off: half of a library cannot be imported again."""
        for module in ("ray", "ray.serve._private.api", "ray.serve.schema"):
            importlib.import_module(module)
        for name in ("ray", "ray.serve"):
            logging.getLogger(name).setLevel(logging.WARNING)

    def start_ray(self, output: Callable[[str], None], verbose: bool) -> None:
        """Start Ray's processes. `output` is given lines that workers write: warnings of ours, or with `verbose` all.

        Takes SIGTERM for Ray. Raises `RuntimeError` if Ray did not come up.
        """
        import ray

        self._reaper = start_reaper()
        try:
            with _longer_start_timeout(), _without_unused_daemons():
                ray.init(
                    address="local",
                    namespace="serve",
                    include_dashboard=False,
                    logging_level=logging.WARNING,
                    log_to_driver=True,
                )
        except Exception as exc:
            raise RuntimeError(f"Ray could not be started: {exc}") from exc
        logs = self.logs()
        assert logs is not None, "Ray has started"
        self._output = show_worker_output(output, verbose, logs)
        _keep_to_owner(Path.home() / ".ray" / "auth_token")

    def start_serve(self) -> None:
        """Start Serve's controller and its proxy, which binds the port.

        Raises `RuntimeError` if they did not come up.
        """
        from ray.serve._private.api import serve_start
        from ray.serve.schema import ServeDeploySchema

        schema = ServeDeploySchema.model_validate(self._plan.document)
        try:
            self._client = serve_start(
                http_options=schema.http_options.model_dump(),
                proxy_location=schema.proxy_location,
                grpc_options=schema.grpc_options.model_dump(),
                controller_options=schema.controller_options,
            )
        except Exception as exc:  # HAProxy needs more ports than the one that we have looked at
            raise RuntimeError(f"Ray Serve could not be started: {getattr(exc, 'cause', exc)}") from exc

    def check_resources(self) -> None:
        """Raise `ConfigurationError` if this machine has not what the workers ask for: Serve would wait for ever."""
        import ray

        if missing := shortage(self._plan.config.workers, ray.cluster_resources()):
            raise ConfigurationError(f"{self._plan.path}: {missing}")

    def deploy(self) -> None:
        """Hand the application to Serve, which builds and starts it in the background."""
        from ray.serve.schema import ServeDeploySchema

        self._client.deploy_apps(ServeDeploySchema.model_validate(self._plan.document), _blocking=False)

    def status(self) -> DeployStatus:
        """What Serve says. Raises what Ray raises when the cluster is gone."""
        from ray import serve
        from ray.serve.schema import ApplicationStatus

        application = serve.status().applications.get(self._plan.app_name)
        if application is None:
            return DeployStatus()
        failures, hints = {}, {}
        for name, overview in application.deployments.items():
            if overview.status == "DEPLOY_FAILED":
                failures[name] = last_line(overview.message)
            elif overview.status != "HEALTHY" and overview.message:
                hints[name] = first_sentence(overview.message)
        failed = application.status == ApplicationStatus.DEPLOY_FAILED
        return DeployStatus(failed, last_line(application.message), failures, hints)

    def alive(self) -> bool:
        """Whether Ray runs: those of its processes that are our children and without which nothing recovers. They may
        have been killed, or have taken a SIGTERM that was sent to all of us."""
        node = _node()
        return node is not None and not any(kind in ("gcs_server", "raylet") for kind, _ in node.dead_processes())

    def logs(self) -> Path | None:
        """The folder where Ray keeps what every process wrote."""
        node = _node()
        return Path(node.get_logs_dir_path()) if node is not None else None

    def stop(self) -> None:
        """End Serve and Ray. Bounded, also if they never came up or are gone."""
        import ray
        from ray import serve

        if self._reaper is not None:
            with suppress(OSError):
                self._reaper.stdin.write(b".")  # look now: some may be orphans in a moment
        with suppress(TimeoutError):
            # Serve waits up to 30 s for a replica that does not end; ray.shutdown ends it in any case.
            if self._client is not None and self.alive():
                logging.getLogger("ray.serve").setLevel(logging.ERROR)  # it warns of how handles are ended
                within(SERVE_SHUTDOWN_S, serve.shutdown)
        if self._output is not None:
            self._output.close()
        with suppress(TimeoutError):
            within(RAY_SHUTDOWN_S, ray.shutdown)


@contextmanager
def _longer_start_timeout() -> Iterator[None]:
    """Ray gives itself 30 s to start, which is too short where everything is slow: the first start after an
    installation, two cores with other work. It cannot be configured, so its question is held back until it has an
    answer."""
    from ray._private import services

    get_node = services.get_node

    def wait_for_node(*args: Any, **kwargs: Any) -> Any:
        deadline = time.monotonic() + RAY_START_S
        while True:
            try:
                return get_node(*args, **kwargs)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    services.get_node = wait_for_node
    try:
        yield
    finally:
        services.get_node = get_node


@contextmanager
def _without_unused_daemons() -> Iterator[None]:
    """Ray starts processes that have nothing to do here, and waits for one of them: what scales a cluster of machines,
    what is left of a dashboard that was not asked for, which reports usage, and what reads the log folder, as we do
    (`log_folder`). It has no setting for that."""
    from ray._private import ray_constants
    from ray._private.node import Node

    def no_dashboard(node: Any, **kwargs: Any) -> None:
        """Others look for its address once a second until there is one. Nobody listened at it before either."""
        name, namespace = ray_constants.DASHBOARD_ADDRESS.encode(), ray_constants.KV_NAMESPACE_DASHBOARD
        node.get_gcs_client().internal_kv_put(name, b"127.0.0.1:9", True, namespace)

    names = ("start_monitor", "start_log_monitor", "start_api_server")
    starts = {name: getattr(Node, name) for name in names}
    Node.start_monitor = Node.start_log_monitor = lambda node: None
    if os.environ.get("RAY_USAGE_STATS_ENABLED") == "0":
        Node.start_api_server = no_dashboard
    try:
        yield
    finally:
        for name, start in starts.items():
            setattr(Node, name, start)


def _node() -> Any:
    """The Ray node that runs as our child, None while there is none."""
    import ray

    return ray._private.worker._global_node


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns or raises. Raises `TimeoutError` after `seconds`; the work goes on without a listener."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as exc:
            outcome.set_exception(exc)

    threading.Thread(target=run, name="rbee-serve-within", daemon=True).start()
    return outcome.result(seconds)


def last_line(message: str) -> str:
    """Of a traceback the line that says what it is about, without the name of the exception."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return re.sub(r"^[\w.]+(?:Error|Exception): ", "", lines[-1]) if lines else ""


def first_sentence(message: str) -> str:
    """Of Serve's explanations the part that says what it waits for."""
    return " ".join(message.split()).partition(". ")[0]


def _keep_to_owner(token_file: Path) -> None:
    """Ray writes the token of its own ports where everybody can read it."""
    if token_file.exists() and token_file.owner() == Path.home().owner():
        token_file.chmod(0o600)
