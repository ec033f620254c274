"""A running `rbee-serve serve`, started as by an init system."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.conftest import free_port

ROOT = Path(__file__).resolve().parents[1]
START_S = 180.0


class Supervisor:
    """The process, its URL, and its output."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, output_file: Path) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.folder = output_file.parent
        self._output_file = output_file

    def output(self) -> str:
        """The output so far."""
        return self._output_file.read_text()

    def until(self, text: str) -> None:
        """Wait for a text in the output."""
        deadline = time.monotonic() + START_S
        while text not in self.output():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.1)

    def started(self) -> list[psutil.Process]:
        """All its child processes so far, direct and indirect."""
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def supervisor(
    folder: Path,
    workers: list[dict[str, Any]],
    environment: Mapping[str, str] | None = None,
    keys: Mapping[str, Any] | None = None,
    options: Sequence[str] = (),
    **args: Any,
) -> Iterator[Supervisor]:
    """A supervisor of those workers, with more `args`, more variables in its `environment`, more `keys` in its file and
    more `options` of its command. It is killed at the end."""
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
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "rbee_serve.supervisor", "serve", str(config), *options],
            cwd=ROOT,
            env={**inherited, **(environment or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield Supervisor(process, port, folder / "output")
        finally:
            process.kill()
            process.wait()
