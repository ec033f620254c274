"""The sockets of a vLLM engine go with its replica, however that ends. No test loads vLLM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

REPLICA = """
import os, subprocess, sys, tempfile
from deployments.vllm_runtime.socket_folder import FOLDER, make_socket_folder
from deployments.vllm_runtime.vllm_engine import OWNER_PID
make_socket_folder()
make_socket_folder()
open(os.environ[FOLDER] + "/socket", "w").close()
os.environ[OWNER_PID] = str(os.getpid())
engine = "from deployments.vllm_runtime import plugin; print(flush=True); plugin._exit_with({})".format(os.getpid())
process = subprocess.Popen([sys.executable, "-c", engine], stdout=subprocess.PIPE)
process.stdout.readline()
print(os.environ[FOLDER], flush=True)
sys.stdin.read()
"""
"""A replica, and an engine that watches it."""


@pytest.mark.parametrize("end", [signal.SIGKILL, None])
def test_the_sockets_of_an_engine_go_with_its_replica(end: signal.Signals | None) -> None:
    with tempfile.TemporaryDirectory() as temp:
        outer = {"VLLM_RPC_BASE_PATH": "/made/above", "RBEE_SERVE_ENGINE_SOCKETS": "/made/above"}
        replica = started(temp, outer)
        assert replica.stdout is not None
        assert Path(replica.stdout.readline().strip(), "socket").exists()
        assert len(list(Path(temp).iterdir())) == 1
        if end is not None:
            replica.send_signal(end)
        replica.communicate()
        deadline = time.monotonic() + 10
        while list(Path(temp).iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.parametrize("end", [signal.SIGKILL, None])
def test_a_folder_that_the_operator_chose_is_used_and_stays(end: signal.Signals | None) -> None:
    with tempfile.TemporaryDirectory() as temp, tempfile.TemporaryDirectory() as chosen:
        with tempfile.TemporaryDirectory() as above:
            replica = started(temp, {"VLLM_RPC_BASE_PATH": chosen, "RBEE_SERVE_ENGINE_SOCKETS": above})
            assert replica.stdout is not None
            assert replica.stdout.readline().strip() == chosen
            if end is not None:
                replica.send_signal(end)
            replica.communicate()
            assert Path(above).exists()
        assert Path(chosen, "socket").exists()
        assert list(Path(temp).iterdir()) == []


def started(temp: str, environ: dict[str, str]) -> subprocess.Popen[str]:
    """The replica with `temp` as its temporary folder. Its engine holds the pipes too: `communicate` waits for both."""
    return subprocess.Popen(
        [sys.executable, "-c", REPLICA],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": temp} | environ,
    )
