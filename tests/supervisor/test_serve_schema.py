"""The options of Ray Serve that the check knows are those of the installed version, with its bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from rbee_serve.config.autoscaling import AutoscalingConfig, AutoscalingPolicy
from rbee_serve.errors import ConfigurationError
from rbee_serve.supervisor import checks, serve_schema
from tests.supervisor.configurations import ECHO, written


def test_the_known_keys_are_those_of_the_installed_ray_serve() -> None:
    from ray.runtime_env import RuntimeEnv
    from ray.serve import config, schema

    pairs: list[tuple[type[BaseModel], type[BaseModel]]] = [
        (serve_schema.ServeFile, schema.ServeDeploySchema),
        (serve_schema.ServeApplication, schema.ServeApplicationSchema),
        (serve_schema.HttpOptions, schema.HTTPOptionsSchema),
        (serve_schema.GrpcOptions, schema.gRPCOptionsSchema),
        (serve_schema.LoggingOptions, schema.LoggingConfig),
        (serve_schema.TracingOptions, schema.TracingConfig),
        (serve_schema.ControllerOptions, config.ControllerOptions),
        (serve_schema.DeploymentOverride, schema.DeploymentSchema),
        (serve_schema.ActorOptions, schema.RayActorOptionsSchema),
        (serve_schema.BackpressureOptions, config.BackpressureConfig),
        (serve_schema.RouterOptions, config.RequestRouterConfig),
        (serve_schema.GangOptions, config.GangSchedulingConfig),
        (serve_schema.DeploymentActor, config.DeploymentActorConfig),
        (AutoscalingConfig, config.AutoscalingConfig),
        (AutoscalingPolicy, config.AutoscalingPolicy),
    ]
    for ours, rays in pairs:
        assert set(ours.model_fields) == set(rays.model_fields), rays
        for name, field in ours.model_fields.items():
            assert field.is_required() == rays.model_fields[name].is_required(), (rays, name)
    assert RuntimeEnv.known_fields - {
        "_ray_release",
        "_ray_commit",
        "_inject_current_ray",
        "_nsight",
        "_rocprof_sys",
    } <= (serve_schema.RUNTIME_KEYS)


def test_values_that_ray_serve_refuses_are_refused_by_the_check(tmp_path: Path) -> None:
    from ray.serve.schema import DeploymentSchema

    for level in ["WARN", "FATAL", "NOTSET", 0, 30]:
        DeploymentSchema(name="echo-0", logging_config={"log_level": level})
        valid = {"name": "echo-0", "logging_config": {"log_level": level}}
        checks.check_file(
            written(tmp_path, ECHO.replace("    args:", f"    deployments: [{json.dumps(valid)}]\n    args:"))
        )
    wrong: list[dict[str, Any]] = [
        *({name: -1} for name, field in DeploymentSchema.model_fields.items() if field.annotation in (int, float)),
        *({name: "x"} for name, field in DeploymentSchema.model_fields.items() if field.annotation in (int, float)),
        {"num_replicas": 0},
        {"num_replicas": "some"},
        {"ray_actor_options": {"num_cpus": -1}},
        {"ray_actor_options": {"label_selector": {"a": 1}}},
        {"logging_config": {"log_level": "debug"}},
        {"rolling_update_percentage": 2},
        {"user_config": "text"},
        {"num_replicas": 2, "autoscaling_config": {"max_replicas": 2}},
    ]
    for override in wrong:
        if override not in ({"max_queued_requests": -1}, {"max_replicas_per_node": -1}):
            with pytest.raises(ValidationError):
                DeploymentSchema(name="echo-0", **override)
            text = ECHO.replace(
                "    args:", f"    deployments: [{json.dumps({'name': 'echo-0', **override})}]\n    args:"
            )
            with pytest.raises(ConfigurationError, match=r"serve_config.yaml:8: applications\[0\]\.deployments\[0\]"):
                checks.check_file(written(tmp_path, text))
