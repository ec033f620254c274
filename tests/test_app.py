"""The options of Ray Serve that the application derives from its configuration."""

from __future__ import annotations

from typing import Any

import pytest
from ray.serve._private.build_app import build_app
from ray.serve.config import HTTPOptions

from deployments.app import CONTROL_RESERVE, _worker_options, application
from deployments.echo import SPEC
from rbee_serve.config import WorkerConfig
from rbee_serve.ingress.listener import Address


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


def deployments(workers: list[dict[str, Any]], address: Address | None) -> dict[str, dict[str, Any]]:
    """The options of the actors of each deployment, in the order in which Ray Serve deploys them."""
    built = application({"workers": workers}, HTTPOptions(host="127.0.0.1", port=8000), address)
    found = build_app(built, name="rbee", make_deployment_handle=lambda deployment, app_name: deployment.name)
    return {deployment.name: deployment.ray_actor_options for deployment in found.deployments}


def test_an_ingress_that_listens_itself_stays_on_the_head_and_so_does_the_hub() -> None:
    echo = {"id": "echo-0", "type": "echo"}
    own = deployments([echo], Address("127.0.0.1", 8000))
    proxied = deployments([echo], None)
    for name in ("ingress", "hub"):
        assert own[name]["resources"] == {"node:__internal_head__": 0.001}
        assert not proxied[name].get("resources")
    assert not own["echo-0"].get("resources")


def test_the_largest_share_of_a_gpu_is_deployed_first() -> None:
    workers = [{"id": f"echo-{n}", "type": "echo", "gpus": gpus} for n, gpus in enumerate((0, 0.4, 0.6, 1, 0.4))]
    ordered = [name for name in deployments(workers, None) if name.startswith("echo-")]
    assert ordered == ["echo-3", "echo-2", "echo-1", "echo-4", "echo-0"]


def test_replicas_get_the_settings_of_serve_that_the_application_was_built_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_SERVE_THROUGHPUT_OPTIMIZED", "yes")
    monkeypatch.delenv("RAY_SERVE_ENABLE_DIRECT_INGRESS", raising=False)
    monkeypatch.setenv("HF_TOKEN", "secret")
    options = _worker_options(WorkerConfig(id="echo-0", type="echo", threads=2), SPEC)
    variables = options["ray_actor_options"]["runtime_env"]["env_vars"]
    assert variables["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "yes"
    assert variables["OMP_NUM_THREADS"] == "2"
    assert not {"RAY_SERVE_ENABLE_DIRECT_INGRESS", "HF_TOKEN"} & variables.keys()
