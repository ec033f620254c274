"""The server under test: its configuration, its start and stop, and what it leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.servers import ROOT, free_port
from benchmarks.soak.hive import HEARTBEAT_S
from deployments.registry import WORKER_TYPES
from rbee_serve.outputs import OutputValue
from rbee_serve.worker.registry import import_path, load_spec

START_S = 300.0
STOP_S = 30.0
"""An init system expects the end of the process within this time."""
SHARED = Path("/dev/shm")
KEPT = ("ray", "torchinductor_")
"""What is meant to stay in the temporary folder (docs/operations.md): Ray's logs, and code that torch has compiled."""
ECHOES: tuple[dict[str, Any], ...] = (
    {"id": "echo-0", "type": "echo", "cpus": 0},
    {"id": "echo-1", "type": "echo", "cpus": 0},
    {"id": "echo-pair", "type": "echo", "cpus": 0, "replicas": 2},
)
"""Workers without a model, which can fail on request; one of them with two replicas."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker under test."""

    id: str
    kind: str
    """Its type in the registry."""
    outputs: tuple[type[OutputValue], ...]
    uses: frozenset[str] = frozenset()
    """Workers that it needs."""


@dataclass(slots=True)
class Leftovers:
    """What was there after the stop and not before the start."""

    files: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)


class Server:
    """`rbee-serve serve` with the workers of a file and some echo workers, in a temporary folder of its own."""

    def __init__(self, config: Path, hive_url: str, *, no_llm: bool) -> None:
        document = yaml.safe_load(config.read_text())
        args = document["applications"][0]["args"]
        configured = [*args["workers"], *ECHOES]
        if no_llm:
            configured = [worker for worker in configured if worker["type"] not in ("llm", "multimodal")]
        self.port = free_port()
        document["http_options"] = {"host": "127.0.0.1", "port": self.port}
        args["workers"] = configured
        args["orchestrator"] = {
            "callback_url": f"{hive_url}/v1/workers/ready",
            "heartbeat_interval_s": HEARTBEAT_S,
        }
        self.workers = [_worker(worker) for worker in configured]
        self.temp = Path(tempfile.mkdtemp(prefix="soak-", dir="/tmp"))  # short, as sockets are in it
        self.log = self.temp.with_suffix(".log")
        self._config = self.temp.with_suffix(".yaml")
        self._config.write_text(yaml.safe_dump(document))
        self._shared_before = _shared()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the supervisor runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> float:
        """Start and wait until all workers are ready; the seconds that it took. Raises `RuntimeError`."""
        began = time.monotonic()
        environment = {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "VLLM_", "OMP_"))}
        environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.temp)}
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rbee_serve.supervisor", "serve", str(self._config)],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while not self._ready():
            if not self.running or time.monotonic() - began > START_S:
                raise RuntimeError(f"the server did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.5)
        return time.monotonic() - began

    def stop(self) -> tuple[int, float]:
        """Send SIGTERM; the exit code and the seconds until the end."""
        assert self._process is not None
        began = time.monotonic()
        self._process.terminate()
        try:
            self._process.wait(STOP_S + 10)
        except subprocess.TimeoutExpired:
            self._process.kill()
        return self._process.wait(), time.monotonic() - began

    def kill(self) -> None:
        """End the supervisor at once, if it still runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def snapshot(self) -> list[dict[str, Any]]:
        """`/v1/workers`. Raises `httpx.HTTPError`."""
        response = httpx.get(f"http://127.0.0.1:{self.port}/v1/workers", timeout=10)
        workers: list[dict[str, Any]] = response.json()["workers"]
        return workers

    def open_requests(self) -> dict[str, int]:
        """Requests that run, wait, or are in an engine, of each worker that has any. Raises `httpx.HTTPError`."""
        counts = {
            worker["id"]: sum(
                replica["running"] + replica["queued"] + (replica.get("engine_requests") or 0)
                for replica in worker["replicas"]
            )
            for worker in self.snapshot()
        }
        return {worker_id: count for worker_id, count in counts.items() if count}

    def temp_files(self) -> int:
        """Files in the temporary folder, without what is meant to stay."""
        return sum(not path.is_dir() for path in self._left())

    def leftovers(self) -> Leftovers:
        """What is left after the stop, and is not meant to stay."""
        files = [str(path.relative_to(self.temp)) for path in self._left()]
        return Leftovers(sorted(files), sorted(_shared() - self._shared_before))

    def _left(self) -> list[Path]:
        return [path for path in self.temp.rglob("*") if not path.relative_to(self.temp).parts[0].startswith(KEPT)]

    def _ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/v1/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False


def _worker(worker: Mapping[str, Any]) -> Worker:
    name = worker["type"] if worker.get("task") is None else f"{worker['type']}/{worker['task']}"
    spec = load_spec(import_path(worker["type"], worker.get("task"), WORKER_TYPES))
    return Worker(worker["id"], name, spec.outputs, frozenset(worker.get("uses", {}).values()))


def _shared() -> set[str]:
    return {path.name for path in SHARED.iterdir()} if SHARED.exists() else set()
