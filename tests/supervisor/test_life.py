"""The whole life of `rbee-serve serve` on Ray, as a person and as an init system see it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from rbee_serve.supervisor.checks import check_port_is_free
from tests.conftest import free_port
from tests.supervisor.configurations import ECHO

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
START_S = 180.0


class Supervisor:
    """A running `rbee-serve serve` and what it has written."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, screen: Path) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._screen = screen

    def said(self) -> str:
        """Everything so far."""
        return self._screen.read_text()

    def until(self, text: str) -> None:
        """Wait for a text on the screen."""
        deadline = time.monotonic() + START_S
        while text not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def started(self) -> list[psutil.Process]:
        """Every process that it has started so far."""
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def supervisor(folder: Path, workers: str) -> Iterator[Supervisor]:
    """A supervisor of those workers, in a session of its own, as a terminal or an init system would start it."""
    port = free_port()
    config = folder / "serve_config.yaml"
    text = ECHO.replace("port: 8000", f"port: {port}")
    config.write_text(text[: text.index("        - id")] + workers)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with (folder / "screen").open("wb") as screen:
        command = [sys.executable, "-m", "rbee_serve.supervisor", "serve", str(config)]
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=screen, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield Supervisor(process, port, folder / "screen")
        finally:
            process.kill()
            process.wait()


def test_it_says_what_is_served_and_drains_on_sigterm(tmp_path: Path) -> None:
    workers = """\
        - {id: echo-0, type: echo, cpus: 0}
        - {id: echo-1, type: echo, cpus: 0, engine: {load_error: "there are no weights"}}
"""
    with supervisor(tmp_path, workers) as running:
        running.until("Ctrl+C stops it")
        said = running.said().splitlines()
        assert f"  echo-0  echo  echo  CPU-0  {running.url}/workers/echo-0" in said
        [failed] = [line for line in said if line.startswith("  echo-1")]
        assert failed.startswith("  echo-1  echo  echo  FAILED: ")
        assert "there are no weights" in failed
        assert f"serving on {running.url} — Ctrl+C stops it" in said
        started = running.started()

        ends: list[str] = []

        def stream() -> None:
            body = {"prompt": "word", "repeat": 40, "tokens_per_sec": 10}
            with httpx.stream("POST", f"{running.url}/workers/echo-0/v1/inference", json=body, timeout=60) as response:
                ends.append([line for line in response.iter_lines() if line][-1])

        streaming = threading.Thread(target=stream)
        streaming.start()
        time.sleep(1.5)
        stopped_at = time.monotonic()
        running.process.terminate()
        time.sleep(1.0)
        assert httpx.get(f"{running.url}/v1/ready").json()["ready"] is False
        refused = httpx.post(f"{running.url}/workers/echo-0/v1/inference", json={"prompt": "too late"})
        assert (refused.status_code, refused.json()["retriable"]) == (503, True)
        streaming.join()
        assert ends == ["data: [DONE]"]
        assert running.process.wait(30) == 0
        assert time.monotonic() - stopped_at < 30
        assert "1 request still running" in running.said()
        assert "Traceback" not in running.said()
        assert psutil.wait_procs(started, timeout=10)[1] == []
    check_port_is_free("127.0.0.1", running.port)


def test_when_it_is_killed_nothing_stays(tmp_path: Path) -> None:
    with supervisor(tmp_path, "        - {id: echo-0, type: echo, cpus: 0}\n") as running:
        running.until("Ctrl+C stops it")
        started = running.started()
        assert len(started) > 5
        running.process.kill()
        assert psutil.wait_procs(started, timeout=15)[1] == []
    check_port_is_free("127.0.0.1", running.port)


def test_without_any_worker_it_ends_and_says_why(tmp_path: Path) -> None:
    workers = '        - {id: echo-0, type: echo, cpus: 0, engine: {load_error: "there are no weights"}}\n'
    with supervisor(tmp_path, workers) as running:
        assert running.process.wait(START_S) == 1
        assert "rbee-serve: no worker could be started\n  echo-0: " in running.said()
        assert "there are no weights" in running.said()


def test_more_cores_than_there_are_is_a_mistake_in_the_configuration(tmp_path: Path) -> None:
    with supervisor(tmp_path, "        - {id: echo-0, type: echo, cpus: 1000}\n") as running:
        assert running.process.wait(START_S) == 2
        asked = "the workers ask for 1000 CPU cores (echo-0 1000), this machine has"
        assert f"rbee-serve: {tmp_path}/serve_config.yaml: {asked}" in running.said()


def test_a_signal_during_the_start_ends_it(tmp_path: Path) -> None:
    with supervisor(tmp_path, "        - {id: echo-0, type: echo, cpus: 0}\n") as running:
        running.until("starting Ray")
        time.sleep(5)
        started = running.started()
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(30) == 0
        assert running.said().splitlines()[-1] == "stopped before anything was served"
        assert psutil.wait_procs(started, timeout=15)[1] == []
