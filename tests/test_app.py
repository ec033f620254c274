"""The options of Ray Serve that the application derives from its configuration."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.app import CONTROL_RESERVE, _worker_options
from deployments.echo import SPEC
from rbee_serve.config import WorkerConfig


@pytest.mark.parametrize(
    ("settings", "running", "queued"),
    [
        ({}, SPEC.default_max_ongoing_requests, 1000),
        ({"max_ongoing_requests": 3}, 3, 1000),
        ({"max_ongoing_requests": 3, "max_queued_requests": 0}, 3, 0),
    ],
)
def test_serves_limit_is_above_the_running_and_the_queued_requests(
    settings: dict[str, Any], running: int, queued: int
) -> None:
    options = _worker_options(WorkerConfig(id="echo-0", type="echo", **settings), SPEC)
    assert options["max_ongoing_requests"] == running + queued + CONTROL_RESERVE


def test_ray_serve_gets_the_options_of_autoscaling_that_are_given() -> None:
    given = {"min_replicas": 1, "max_replicas": 3, "policy": {"policy_function": "package.module:policy"}}
    worker = WorkerConfig.model_validate({"id": "echo-0", "type": "echo", "autoscaling": given})
    options = _worker_options(worker, SPEC)
    assert options["autoscaling_config"] == given
    assert "num_replicas" not in options


def test_only_a_worker_with_gpus_sees_gpus() -> None:
    def environment(**settings: Any) -> dict[str, str]:
        worker = WorkerConfig(id="echo-0", type="echo", **settings)
        variables: dict[str, str] = _worker_options(worker, SPEC)["ray_actor_options"]["runtime_env"]["env_vars"]
        return variables

    assert environment()["CUDA_VISIBLE_DEVICES"] == ""
    assert environment(backend="cpu")["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in environment(gpus=0.5)  # Ray sets it
