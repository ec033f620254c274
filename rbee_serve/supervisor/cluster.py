"""Ray and Ray Serve, started in this process as `serve run --address local` does."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from rbee_serve.deploy_status import DeployStatus, read_status
from rbee_serve.errors import ConfigurationError
from rbee_serve.supervisor.call_timeout import call_with_timeout
from rbee_serve.supervisor.checks import CheckedConfig
from rbee_serve.supervisor.environment import mig_instances
from rbee_serve.supervisor.log_folder import LogReader
from rbee_serve.supervisor.ray_start import patched_ray_start
from rbee_serve.supervisor.reaper import start_reaper
from rbee_serve.supervisor.resources import shortage
from rbee_serve.supervisor.temp_folder import make_temp_folder
from rbee_serve.supervisor.worker_output import show_worker_output

SERVE_SHUTDOWN_S = 6.0
"""How long Serve may take to end its replicas before Ray is stopped."""
RAY_SHUTDOWN_S = 6.0
"""How long Ray may take to stop. The kernel ends what is left together with the supervisor."""
RECORD_S = 0.5
"""The time in which the reaper lists the processes."""
REAP_S = 5.0
"""How long the reaper may take to end what is left and to remove temporary files."""


class Cluster:
    """A local Ray with one Serve on it. The methods are called in the order in which they stand."""

    def __init__(self, checked: CheckedConfig) -> None:
        self._checked = checked
        self._client: Any = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self._output: LogReader | None = None

    def load(self) -> None:
        """Import Ray, which takes seconds and must not be interrupted: a half-imported library cannot be imported
        again."""
        for module in ("ray", "ray.serve._private.api", "ray.serve.schema"):
            importlib.import_module(module)
        for name in ("ray", "ray.serve"):
            logging.getLogger(name).setLevel(logging.WARNING)

    def start_ray(self, output: Callable[[str], None], verbose: bool) -> None:
        """Start Ray's processes. `output` receives lines of the workers: warnings of rbee-serve, or with `verbose` all.

        Replaces the handler of SIGTERM with Ray's, and `TMPDIR` with a folder that is removed at the end. Raises
        `RuntimeError` if Ray did not start.
        """
        import ray

        self._reaper = start_reaper(make_temp_folder(os.environ))
        try:
            with patched_ray_start():
                ray.init(
                    address="local",
                    namespace="serve",
                    num_gpus=mig_instances(os.environ),
                    include_dashboard=False,
                    logging_level=logging.WARNING,
                    log_to_driver=True,
                )
        except Exception as exc:
            raise RuntimeError(f"Ray could not be started: {exc}") from exc
        logs = self.logs()
        assert logs is not None, "Ray has started"
        self._output = show_worker_output(output, verbose, logs)
        _restrict_to_owner(Path.home() / ".ray" / "auth_token")

    def start_serve(self) -> None:
        """Start Serve's controller, and its proxy if there is one, which binds the port.

        Raises `RuntimeError` if they did not start.
        """
        from ray.serve._private.api import serve_start
        from ray.serve.schema import ServeDeploySchema

        schema = ServeDeploySchema.model_validate(self._checked.document)
        try:
            self._client = serve_start(
                http_options=schema.http_options.model_dump(),
                proxy_location=schema.proxy_location,
                grpc_options=schema.grpc_options.model_dump(),
                controller_options=schema.controller_options,
            )
        except Exception as exc:  # HAProxy needs more ports than the one that was checked
            raise RuntimeError(f"Ray Serve could not be started: {getattr(exc, 'cause', exc)}") from exc

    def check_resources(self) -> None:
        """Raise `ConfigurationError` if the machines lack resources that the workers request: Serve would wait without
        end."""
        if missing := shortage(self._checked.config.workers, self.nodes()):
            raise ConfigurationError(f"{self._checked.path}: {missing}")

    def nodes(self) -> list[dict[str, Any]]:
        """The entries of `ray.nodes()`: this machine, and those that have joined."""
        import ray

        return list(ray.nodes())

    def address(self) -> str:
        """Where other machines join, as `HOST:PORT`."""
        import ray

        return str(ray.get_runtime_context().gcs_address)

    def deploy(self) -> None:
        """Submit the application to Serve, which builds and starts it in the background."""
        from ray.serve.schema import ServeDeploySchema

        self._client.deploy_apps(ServeDeploySchema.model_validate(self._checked.document), _blocking=False)

    def status(self) -> DeployStatus:
        """The state in Serve. Raises Ray's exceptions when the cluster is gone."""
        return read_status(self._checked.app_name)

    def alive(self) -> bool:
        """Whether Ray runs: the child processes without which nothing recovers. They may have been killed, or have
        received a SIGTERM that was sent to the whole process group."""
        node = _node()
        return node is not None and not any(kind in ("gcs_server", "raylet") for kind, _ in node.dead_processes())

    def logs(self) -> Path | None:
        """The folder of the logs of all Ray processes."""
        node = _node()
        return Path(node.get_logs_dir_path()) if node is not None else None

    def stop(self) -> None:
        """End Serve and Ray within a bounded time, also if they did not start or are gone."""
        import ray
        from ray import serve

        self._record_descendants()
        with suppress(TimeoutError):
            # Serve waits up to 30 s for a replica that does not end; ray.shutdown ends it in any case.
            if self._client is not None and self.alive():
                logging.getLogger("ray.serve").setLevel(logging.ERROR)  # it warns of how handles are closed
                call_with_timeout(SERVE_SHUTDOWN_S, serve.shutdown)
        if self._output is not None:
            self._output.close()
        with suppress(TimeoutError):
            call_with_timeout(RAY_SHUTDOWN_S, ray.shutdown)
        self._reap()

    def exit_while_starting(self) -> NoReturn:
        """End this process at once, with exit code 0; the kernel and the reaper end the processes of Ray. For a signal
        that interrupted Ray's or Serve's start: `ray.shutdown`, also at the end of the interpreter, can crash then."""
        self._record_descendants()
        time.sleep(RECORD_S)
        sys.stdout.flush()
        os._exit(0)

    def _record_descendants(self) -> None:
        """Have the reaper list the processes now: some will be orphans in a moment."""
        if self._reaper is not None and self._reaper.stdin is not None:
            with suppress(OSError):
                self._reaper.stdin.write(b".")

    def _reap(self) -> None:
        """Have the reaper end what is left and remove temporary files, and wait for that."""
        if self._reaper is not None:
            with suppress(OSError, subprocess.TimeoutExpired):
                self._reaper.communicate(timeout=REAP_S)


def _node() -> Any:
    """The Ray node that runs as a child process; None while there is none."""
    import ray

    return ray._private.worker._global_node


def _restrict_to_owner(token_file: Path) -> None:
    """Ray writes the token of its own ports with read permission for everybody."""
    if token_file.exists() and token_file.owner() == Path.home().owner():
        token_file.chmod(0o600)
