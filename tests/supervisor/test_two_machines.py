"""A server whose workers need a second machine: another node of the supervisor's Ray, with an address of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.baselines.two_nodes import FAR
from tests.conftest import ECHO, free_port
from tests.served.measured import measured
from tests.supervised import ROOT, supervisor

pytestmark = pytest.mark.ray

RECONNECT_S = 5
"""How long the joined node looks for a head that has gone. Ray's default is a minute."""


@contextmanager
def joined(address: str, environment: dict[str, str], output: Path) -> Iterator[psutil.Process]:
    """The process of a machine with 64 cores that has joined."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "rbee_serve.supervisor", "join", address, "--", "--num-cpus=64"]
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*command, f"--node-ip-address={FAR}"],
            cwd=ROOT,
            env={**inherited, **environment, "RAY_gcs_rpc_server_reconnect_timeout_s": str(RECONNECT_S)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    children: list[psutil.Process] = []
    try:
        yield psutil.Process(process.pid)
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        process.wait(20)
        assert psutil.wait_procs(children, timeout=10)[1] == []


def test_the_workers_start_when_another_machine_has_joined_and_it_leaves_with_the_server(tmp_path: Path) -> None:
    environment = {"RAY_GCS_SERVER_PORT": str(free_port())}
    far = {"id": "echo-far", **ECHO, "cpus": 60}
    with supervisor(tmp_path, [{"id": "echo-0", **ECHO}, far], environment, options=["--wait-for-nodes=1"]) as running:
        running.until("waiting for other machines: 0 of 1 joined")
        match = re.search(r"rbee-serve join (\S+)", running.output())
        assert match is not None, running.output()
        assert match[1].endswith(f":{environment['RAY_GCS_SERVER_PORT']}")
        with joined(match[1], environment, tmp_path / "joined") as node:
            running.until("Ctrl+C stops it")
            for worker_id in ("echo-0", "echo-far"):
                body = {"prompt": "hello", "stream": False}
                response = httpx.post(f"{running.url}/workers/{worker_id}/v1/inference", json=body, timeout=30)
                assert response.json()["text"] == "hello"
            on_the_node = {" ".join(process.cmdline()) for process in node.children(recursive=True)}
            assert any(":echo-far" in command for command in on_the_node)
            assert not any(":ingress" in command or ":hub" in command for command in on_the_node)
            running.process.terminate()
            assert running.process.wait(30) == 0
            stopped_at = time.monotonic()
            node.wait(60)
            measured("the server stopped", "the machine that joined has left", time.monotonic() - stopped_at, 15)
