"""`serve run serve_config.yaml`, without the supervisor."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from tests.conftest import ECHO, free_port
from tests.served.waiting import eventually

pytestmark = pytest.mark.ray


@contextmanager
def serve_run(folder: Path) -> Iterator[tuple[str, Path]]:
    """An echo worker served by Ray's own command: its URL, and the file with its output."""
    port, config, log = free_port(), folder / "serve_config.yaml", folder / "log"
    application = {"import_path": "deployments.app:build_app", "args": {"workers": [{"id": "echo-0", **ECHO}]}}
    config.write_text(
        yaml.safe_dump({"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]})
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with log.open("wb") as output:
        command = [str(Path(sys.executable).with_name("serve")), "run", "--address", "local", str(config)]
        process = subprocess.Popen(command, env=inherited, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield f"http://127.0.0.1:{port}", log
    finally:
        started = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.wait(60)
        for remaining in started:
            if remaining.is_running():
                remaining.kill()


def test_it_serves_and_logs_the_missing_ray_settings_once(tmp_path: Path) -> None:
    def serves() -> bool:
        try:
            body = {"prompt": "hello", "stream": False}
            response = httpx.post(f"{url}/workers/echo-0/v1/inference", json=body)
            return bool(response.json()["text"] == "hello")
        except (httpx.HTTPError, ValueError, KeyError):
            return False

    with serve_run(tmp_path) as (url, log):
        eventually(serves, 120)
        eventually(lambda: "Ray was started without" in log.read_text())
        [line] = [line for line in log.read_text().splitlines() if "Ray was started without" in line]
    assert "RAY_SERVE_THROUGHPUT_OPTIMIZED=1" in line
    assert "rbee-serve serve FILE" in line
