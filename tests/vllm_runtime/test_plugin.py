"""An engine's process ends with the process that started it. No test loads vLLM."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from deployments.vllm_runtime import plugin
from deployments.vllm_runtime.vllm_engine import OWNER_PID

STARTS_ENGINE = """
import sys
from multiprocessing import get_context
from tests.vllm_runtime.test_plugin import engine
if __name__ == "__main__":
    process = get_context("spawn").Process(target=engine, args=sys.argv[1:])
    process.start()
    print(process.pid, flush=True)
    process.join()
"""


def engine(folder: str) -> None:
    """Loads the plugin when it is allowed to, as vLLM does after its imports."""
    for name in ("register_loader", "patch_shm_wait", "report_memory", "report_failures"):
        setattr(plugin, name, lambda: None)
    Path(folder, "started").touch()
    while not Path(folder, "go on").exists():
        time.sleep(0.01)
    plugin.register()
    Path(folder, "registered").touch()
    time.sleep(60)


@pytest.mark.parametrize("killed", ["before", "after"])
def test_an_engine_ends_when_its_replica_is_killed_before_or_after_the_plugin_is_loaded(
    killed: str, tmp_path: Path
) -> None:
    replica = subprocess.Popen(
        [sys.executable, "-c", STARTS_ENGINE, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, OWNER_PID: "0"},
    )
    assert replica.stdout is not None
    process = psutil.Process(int(replica.stdout.readline()))
    until(tmp_path / "started")
    if killed == "after":
        (tmp_path / "go on").touch()
        until(tmp_path / "registered")
    replica.kill()
    replica.wait()
    replica.stdout.close()
    (tmp_path / "go on").touch()
    try:
        process.wait(10)
    finally:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def until(file: Path) -> None:
    """Wait for the file."""
    deadline = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < deadline, file
        time.sleep(0.01)
