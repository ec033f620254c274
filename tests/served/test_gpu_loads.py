"""Loads onto pretended GPUs under Ray Serve: one at a time, also where one fails or is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import free_port, wait_until_it_answers
from tests.replica.timed_worker import loads_in
from tests.served.waiting import eventually

pytestmark = pytest.mark.ray


def workers(folder: Path) -> list[dict[str, Any]]:
    """Four for one GPU, and one for another."""
    kinds: dict[str, tuple[float, dict[str, Any]]] = {
        "killed-0": (0.1, {"load_s": 600}),
        "fails-0": (0.2, {"vram_errors": 9}),
        "large-0": (0.5, {"load_s": 1}),
        "small-0": (0.2, {"load_s": 1}),
        "whole-0": (1, {"load_s": 1}),
    }
    return [
        {
            "id": worker_id,
            "type": "tests.replica.timed_worker:SPEC",
            "cpus": 0,
            "gpus": gpus,
            "engine": {"folder": str(folder), **engine},
        }
        for worker_id, (gpus, engine) in kinds.items()
    ]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """The application, on a Ray of its own with two GPUs."""
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions

    from deployments.app import application
    from rbee_serve.ingress.listener import Address

    port = free_port()
    ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": free_port()})
        app = application(
            {"workers": workers(tmp_path)}, HTTPOptions(host="127.0.0.1", port=port), Address("127.0.0.1", port)
        )
        serve.run_many([serve.RunTarget(app, "rbee")], wait_for_applications_running=False)
        wait_until_it_answers(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()
    finally:
        ray.shutdown()


def test_loads_take_turns_on_a_gpu_until_each_has_warmed_up_failed_or_died(url: str, tmp_path: Path) -> None:
    seen: dict[str, set[Any]] = {}
    killed = tmp_path / "began-killed-0"

    def settled() -> bool:
        states = {worker["id"]: worker for worker in httpx.get(f"{url}/v1/ready").json()["workers"]}
        for worker_id, worker in states.items():
            progress = worker.get("progress", {})
            if progress.get("stage") == "waiting_for_gpu":
                seen.setdefault(worker_id, set()).add(progress.get("held_by"))
        if killed.exists() and time.time() - killed.stat().st_mtime > 2:
            os.kill(int(killed.read_text()), signal.SIGKILL)
            killed.unlink()
        ready = {worker_id for worker_id, worker in states.items() if worker["ready"]}
        failed = {worker_id for worker_id, worker in states.items() if worker["state"] == "error"}
        return ready == {"large-0", "small-0", "whole-0"} and failed == {"fails-0", "killed-0"}

    eventually(settled, 180)
    shared = [load for load in loads_in(tmp_path) if load.worker_id != "whole-0"]
    assert {load.worker_id for load in shared} == {"fails-0", "large-0", "small-0"}
    assert len({load.gpus for load in shared}) == 1
    assert not any(one.overlaps(other) for one, other in combinations(shared, 2))
    assert "whole-0" not in seen
    assert set.union(*seen.values()) <= {"killed-0", "fails-0", "large-0", "small-0", None}
