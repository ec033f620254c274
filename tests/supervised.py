"""A running `rbee-serve serve`, as a terminal or an init system would start it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.conftest import free_port

ROOT = Path(__file__).resolve().parents[1]
START_S = 180.0


class Supervisor:
    """The process, where it serves, and what it has written."""

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
def supervisor(
    folder: Path,
    workers: list[dict[str, Any]],
    environment: Mapping[str, str] | None = None,
    keys: Mapping[str, Any] | None = None,
    **args: Any,
) -> Iterator[Supervisor]:
    """A supervisor of those workers, with more `args`, Ray settings of its own, and more `keys` in its file. It is
    killed at the end."""
    port = free_port()
    application = {
        "name": "rbee",
        "route_prefix": "/",
        "import_path": "deployments.app:build_app",
        "args": {"workers": workers, **args},
    }
    config = folder / "serve_config.yaml"
    http = {"host": "127.0.0.1", "port": port}
    config.write_text(yaml.safe_dump({"http_options": http, "applications": [application], **(keys or {})}))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with (folder / "screen").open("wb") as screen:
        process = subprocess.Popen(
            [sys.executable, "-m", "rbee_serve.supervisor", "serve", str(config)],
            cwd=ROOT,
            env={**inherited, **(environment or {})},
            stdout=screen,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield Supervisor(process, port, folder / "screen")
        finally:
            process.kill()
            process.wait()
