"""The life of `rbee-serve serve` on Ray, from its start to its stop."""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from rbee_serve.supervisor.checks import check_port_is_free
from tests.conftest import ECHO
from tests.served.models import LLM
from tests.supervised import START_S, supervisor

pytestmark = pytest.mark.ray


def test_the_summary_lists_the_workers_and_sigterm_drains(tmp_path: Path) -> None:
    broken = {"id": "echo-1", **ECHO, "engine": {"load_error": "there are no weights"}}
    with supervisor(tmp_path, [{"id": "echo-0", **ECHO}, broken]) as running:
        running.until("Ctrl+C stops it")
        output = running.output().splitlines()
        assert f"  echo-0  echo  echo  CPU-0  {running.url}/workers/echo-0" in output
        [failed] = [line for line in output if line.startswith("  echo-1")]
        assert failed.startswith("  echo-1  echo  echo  FAILED: ")
        assert "there are no weights" in failed
        assert f"serving on {running.url} — Ctrl+C stops it" in output
        started = running.started()
        programs = {Path(word).name for process in started for word in process.cmdline()}
        assert programs.isdisjoint({"dashboard.py", "monitor.py"})  # unused daemons of Ray

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
        assert "1 request still running" in running.output()
        assert "Traceback" not in running.output()
        assert psutil.wait_procs(started, timeout=10)[1] == []
    check_port_is_free("127.0.0.1", running.port)


def test_no_process_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    with supervisor(tmp_path, [{"id": "echo-0", **ECHO}]) as running:
        running.until("Ctrl+C stops it")
        started = running.started()
        assert len(started) > 5
        running.process.kill()
        assert psutil.wait_procs(started, timeout=15)[1] == []
    check_port_is_free("127.0.0.1", running.port)


def test_without_any_worker_it_ends_with_the_reasons(tmp_path: Path) -> None:
    broken = {"id": "echo-0", **ECHO, "engine": {"load_error": "there are no weights"}}
    with supervisor(tmp_path, [broken]) as running:
        assert running.process.wait(START_S) == 1
        assert "rbee-serve: no worker could be started\n  echo-0: " in running.output()
        assert "there are no weights" in running.output()


def test_a_request_for_more_cores_than_the_machine_has_is_a_configuration_error(tmp_path: Path) -> None:
    with supervisor(tmp_path, [{"id": "echo-0", "type": "echo", "cpus": 1000}]) as running:
        assert running.process.wait(START_S) == 2
        shortage = "the workers request 1000 CPU cores (echo-0 1000), this machine has"
        assert f"rbee-serve: {tmp_path}/serve_config.yaml: {shortage}" in running.output()


@pytest.mark.parametrize(("step", "later_s"), [("starting Ray", 2.0), ("starting Ray Serve", 0.2)])
def test_a_signal_during_the_start_stops_it(tmp_path: Path, step: str, later_s: float) -> None:
    with supervisor(tmp_path, [{"id": "echo-0", **ECHO}]) as running:
        running.until(f"{step}\n")
        time.sleep(later_s)
        started = running.started()
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(30) == 0
        # Where Serve starts faster than that, the workers are loading already.
        assert running.output().splitlines()[-1].startswith(("stopped before anything was served", "stopped after"))
        assert psutil.wait_procs(started, timeout=15)[1] == []


@pytest.mark.vllm
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_the_language_model_leaves_nothing_behind(end: signal.Signals, tmp_path: Path) -> None:
    shared = set(Path("/dev/shm").iterdir())
    with (
        tempfile.TemporaryDirectory() as folder,  # short enough for sockets
        supervisor(tmp_path, [LLM], {"TMPDIR": folder}) as running,
    ):
        running.until("Ctrl+C stops it")
        [temp] = Path(folder).glob("rbee-serve-*")
        assert any(file.is_socket() for file in temp.rglob("*"))
        started = running.started()
        made = {file for file in set(Path("/dev/shm").iterdir()) - shared if file.name.startswith("psm_")}
        assert made
        running.process.send_signal(end)
        running.process.wait(30)
        assert psutil.wait_procs(started, timeout=15)[1] == []
        assert [entry.name for entry in Path(folder).iterdir()] == ["ray"]
        assert made.isdisjoint(Path("/dev/shm").iterdir())
