"""A server for one trial: `rbee-serve serve` in a process of its own, which a signal ends as Ctrl+C does."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from rbee_serve.client import Client, WorkerReadiness
from rbee_serve.errors import WorkerError
from rbee_serve.outputs import OutputValue
from rbee_serve.supervisor.gpu_check.trial_config import HOST

POLL_S = 0.25
STOP_S = 40.0
"""How long the server may take to stop; it ends itself after 28 s."""
_REASON_LINES = 3


class TrialFailed(Exception):
    """The server ended; the message is the reason in one sentence."""


class TrialServer:
    """The process, and the time since its start."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, output: Path) -> None:
        self._process = process
        self._output = output
        self._url = f"http://{HOST}:{port}"
        self._began = time.monotonic()

    def client(self, outputs: Sequence[type[OutputValue]] = ()) -> Client:
        """A client. To be closed by the caller."""
        return Client(self._url, outputs=outputs, trust_env=False)

    def wait(self) -> dict[str, tuple[WorkerReadiness, float]]:
        """Every worker with the seconds from the start of the server until it was ready or had failed.

        Raises `TrialFailed` if the server ends first without a reason for each of them.
        """
        found: dict[str, tuple[WorkerReadiness, float]] = {}
        with self.client() as client:
            while True:
                workers = self._workers(client)
                for worker in workers:
                    if worker.id not in found and (worker.ready or worker.failed):
                        found[worker.id] = (worker, time.monotonic() - self._began)
                if workers and len(found) == len(workers):
                    return found
                if self._process.poll() is not None:
                    raise TrialFailed(self._reason())
                time.sleep(POLL_S)

    def _workers(self, client: Client) -> tuple[WorkerReadiness, ...]:
        try:
            return client.ready().workers
        except WorkerError:
            return ()

    def _reason(self) -> str:
        """What the server printed last; its lines begin with its name."""
        lines = [line.strip() for line in self._output.read_text(errors="replace").splitlines() if line.strip()]
        start = next((at for at, line in enumerate(lines) if line.startswith("rbee-serve: ")), max(0, len(lines) - 1))
        return " ".join(lines[start : start + _REASON_LINES]).removeprefix("rbee-serve: ") or "the server ended"


@contextmanager
def trial_server(config: Mapping[str, Any], folder: Path) -> Iterator[TrialServer]:
    """A server of that Ray Serve file; its file and its output are in `folder`. Stopped at the end."""
    file, output = folder / "serve_config.yaml", folder / "output"
    file.write_text(yaml.safe_dump(dict(config)))
    with output.open("wb") as stream:
        process = subprocess.Popen(  # noqa: S603  (the file is ours)
            [sys.executable, "-m", "rbee_serve.supervisor", "serve", str(file)],
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl+C reaches this program, which then stops the server
        )
    try:
        yield TrialServer(process, int(config["http_options"]["port"]), output)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
