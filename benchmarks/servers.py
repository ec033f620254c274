"""The compared servers: started once, stopped with SIGSTOP while another one is measured."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.load import LoadError, Target
from benchmarks.method import Reading, Turn
from benchmarks.processes import ProcessTree

ROOT = Path(__file__).resolve().parents[1]
START_S = 700.0
SETTLE_S = 1.0
"""Seconds between SIGCONT and the measurement."""


class Server:
    """A server with requests at `target`; `probe` is a request that has to succeed."""

    def __init__(self, tree: ProcessTree, target: Target, probe: dict[str, Any]) -> None:
        self.tree = tree
        self.target = target
        self._probe = probe

    def wait_until_it_answers(self, within_s: float = START_S) -> None:
        """Return after a successful probe. Raises `LoadError` if the server ends or takes too long."""
        deadline = time.monotonic() + within_s
        url = f"http://127.0.0.1:{self.target.port}{self.target.path}"
        while not self._answers(url):
            if not self.tree.running:
                raise LoadError(f"the server ended:\n{self.tree.log.read_text()[-2000:]}")
            if time.monotonic() > deadline:
                raise LoadError(f"{url} did not answer; its output:\n{self.tree.log.read_text()[-2000:]}")
            time.sleep(0.2)

    def _answers(self, url: str) -> bool:
        try:
            return httpx.post(url, json=self._probe, headers=dict(self.target.headers), timeout=30).status_code == 200
        except httpx.HTTPError:
            return False

    @contextmanager
    def awake(self) -> Iterator[None]:
        """The server runs during the block, after a successful probe, and is stopped afterwards."""
        self.tree.wake()
        self.wait_until_it_answers(60)
        time.sleep(SETTLE_S)
        try:
            yield
        finally:
            self.tree.sleep()

    def beside(self, turn: Turn) -> Turn:
        """That turn beside this server while it is idle: the effect of idle processes."""

        def taken() -> Mapping[str, Reading]:
            with self.awake():
                return turn()

        return taken


def ours(
    stack: ExitStack,
    folder: Path,
    worker: Mapping[str, Any],
    probe: dict[str, Any],
    settings: Mapping[str, str] | None = None,
    name: str = "rbee-serve",
    args: Mapping[str, Any] | None = None,
    module: Sequence[str] = ("rbee_serve.supervisor", "serve"),
    checkout: Path = ROOT,
) -> Server:
    """`rbee-serve serve` with one worker. `settings` are further environment variables, `args` further arguments of the
    application; `module` is the module that serves the file, with its options; `checkout` has the version to run."""
    port = free_port()
    token = folder / f"{name}.token"
    token.write_text("benchmark")
    config = folder / f"{name}.yaml"
    arguments = {"workers": [dict(worker)], "auth": {"token_file": str(token)}, **(args or {})}
    application = {
        "name": "rbee",
        "route_prefix": "/",
        "import_path": "deployments.app:build_app",
        "args": arguments,
    }
    document = {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]}
    config.write_text(yaml.safe_dump(document))
    target = Target(port, f"/workers/{worker['id']}/v1/inference", {"Authorization": "Bearer benchmark"})
    command = [sys.executable, "-m", *module, str(config)]
    return _started(stack, folder, name, command, target, probe, settings, checkout)


def baseline(
    stack: ExitStack,
    folder: Path,
    module: str,
    probe: dict[str, Any],
    options: Sequence[str] = (),
    path: str = "/v1/inference",
    packages: Path | None = None,
    environment: Path | None = None,
) -> Server:
    """A module of `benchmarks/baselines/` with requests to `path`. `packages` is a folder with further packages,
    `environment` a virtual environment in place of ours."""
    port = free_port()
    python = str(environment / "bin" / "python") if environment else sys.executable
    command = [python, "-m", f"benchmarks.baselines.{module}", "--port", str(port), *options]
    settings = {"PYTHONPATH": f"{ROOT}{os.pathsep}{packages}"} if packages else {}
    return _started(stack, folder, module, command, Target(port, path), probe, settings)


def vllm_server(
    stack: ExitStack, folder: Path, options: Sequence[str], probe: dict[str, Any], *, reserve_core: bool = False
) -> Server:
    """vLLM's own OpenAI server. By default, with its best setting on few cores: its model works on all of them. With
    `reserve_core` it keeps one for its engine, as vLLM does where nothing is set."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    settings = {"VLLM_NO_USAGE_STATS": "1"} | ({} if reserve_core else {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0"})
    return _started(stack, folder, "vllm", [*command, *options], Target(port, "/v1/completions"), probe, settings)


def infinity(
    stack: ExitStack,
    folder: Path,
    environment: Path,
    model: Path,
    probe: dict[str, Any],
    settings: Mapping[str, str] | None = None,
) -> Server:
    """infinity-emb with its torch engine, from a virtual environment of its own, as it needs transformers 4. `probe`
    has the name of the served model."""
    port = free_port()
    command = [str(environment / "bin" / "infinity_emb"), "v2", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model-id", str(model), "--served-model-name", str(probe["model"]), "--engine", "torch"]
    command += ["--device", "cpu", "--batch-size", "32", "--no-bettertransformer", "--no-model-warmup"]
    settings = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", **(settings or {})}
    return _started(stack, folder, "infinity", command, Target(port, "/embeddings"), probe, settings)


def _started(
    stack: ExitStack,
    folder: Path,
    name: str,
    command: Sequence[str],
    target: Target,
    probe: dict[str, Any],
    settings: Mapping[str, str] | None = None,
    checkout: Path = ROOT,
) -> Server:
    """Start the server, wait for it and stop it with SIGSTOP; it ends with `stack`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # otherwise SIGTERM would leave it stopped
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "VLLM_", "OMP_"))}
    environment |= {"PYTHONPATH": str(checkout), **(settings or {})}
    tree = ProcessTree(command, environment, folder / f"{name}.log", checkout)
    stack.callback(tree.end)
    server = Server(tree, target, probe)
    server.wait_until_it_answers()
    tree.sleep()
    return server


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
