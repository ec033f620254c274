"""The keys of a Ray Serve file outside of `args:`, by Ray Serve's own names and bounds.

Ray's own reader takes a second to import and drops most unknown keys. These models forbid them; a test compares their
fields with those of the installed Ray (`ray.serve.schema`), and values that Ray refuses are refused here.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from rbee_serve.config import AutoscalingConfig, unknown_key
from rbee_serve.config.base import ConfigModel
from rbee_serve.config.sentences import EXPECTED

Seconds = Annotated[float, Field(gt=0)]
SecondsOrZero = Annotated[float, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
Port = Annotated[int, Field(ge=1, le=65535)]
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
"""Of logging; Ray takes their other names and their numbers too."""
RUNTIME_KEYS = frozenset(
    "config conda container env_vars excludes image_uri java_jars mpi nsight pip py_executable py_modules rocprof_sys "
    "uv worker_process_setup_hook working_dir".split()
)
"""Of a `runtime_env`. Plug-ins of Ray may add others."""


def _check_environment(environment: dict[str, Any]) -> dict[str, Any]:
    for key in environment.keys() - RUNTIME_KEYS:
        if "did you mean" in (sentence := unknown_key(key, RUNTIME_KEYS)):
            raise ValueError(f"has the {sentence.replace('key;', f'key {key};')}")
    variables = environment.get("env_vars")
    if variables is not None and not (
        isinstance(variables, dict) and all(isinstance(value, str) for value in variables.values())
    ):
        raise ValueError("needs texts in env_vars; put each value in quotes, such as env_vars: {OMP_NUM_THREADS: '4'}")
    return environment


RuntimeEnvironment = Annotated[dict[str, Any], AfterValidator(_check_environment)]


class LoggingOptions(ConfigModel):
    """`logging_config:`"""

    encoding: Literal["TEXT", "JSON"] = "TEXT"
    log_level: int | str = "INFO"
    logs_dir: str | None = None
    enable_access_log: bool = True
    additional_log_standard_attrs: list[str] = Field(default_factory=list)

    @field_validator("log_level")
    @classmethod
    def _check_level(cls, level: int | str) -> int | str:
        names = logging.getLevelNamesMapping()
        if level not in names and level not in names.values():
            raise ValueError(f"must be one of {', '.join(LEVELS)}, not {level!r}")
        return level


class TracingOptions(ConfigModel):
    """`tracing_config:`"""

    enabled: bool = False
    exporter_import_path: str = ""
    sampling_ratio: Annotated[float, Field(ge=0, le=1)] = 0.01


class HttpOptions(ConfigModel):
    """`http_options:`"""

    host: Annotated[str, Field(min_length=1, json_schema_extra={EXPECTED: "an address such as 127.0.0.1"})] = (
        "127.0.0.1"
    )
    port: Port = 8000
    root_path: str = ""
    request_timeout_s: Seconds | None = None
    keep_alive_timeout_s: Annotated[int, Field(ge=0)] = 90
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile_password: str | None = Field(default=None, repr=False)
    ssl_ca_certs: str | None = None


class GrpcOptions(ConfigModel):
    """`grpc_options:`"""

    port: Port = 9000
    grpc_servicer_functions: list[str] = Field(default_factory=list)
    request_timeout_s: Seconds | None = None
    enable_reflection: bool = True


class ControllerEnvironment(ConfigModel):
    """`controller_options.runtime_env:`; Ray takes variables only."""

    env_vars: dict[str, str] = Field(default_factory=dict)


class ControllerOptions(ConfigModel):
    """`controller_options:`"""

    runtime_env: ControllerEnvironment | None = None


class ActorOptions(ConfigModel):
    """`ray_actor_options:` of an override."""

    runtime_env: RuntimeEnvironment = Field(default_factory=dict)
    num_cpus: Amount | None = None
    num_gpus: Amount | None = None
    memory: Amount | None = None
    resources: dict[str, Amount] = Field(default_factory=dict)
    accelerator_type: str | None = None
    label_selector: dict[str, str] | None = None
    fallback_strategy: list[dict[str, Any]] | None = None


class BackpressureOptions(ConfigModel):
    """`backpressure_config:` of an override."""

    status_code: Literal[503, 429] = 503
    retry_after_s: SecondsOrZero | None = None


class RouterOptions(ConfigModel):
    """`request_router_config:` of an override."""

    request_router_class: str = ""
    request_router_kwargs: dict[str, Any] = Field(default_factory=dict)
    request_routing_stats_period_s: Seconds = 10
    request_routing_stats_timeout_s: Seconds = 30
    initial_backoff_s: Seconds = 0.025
    backoff_multiplier: Seconds = 2
    max_backoff_s: Seconds = 0.5


class GangOptions(ConfigModel):
    """`gang_scheduling_config:` of an override."""

    gang_size: Annotated[int, Field(ge=1)]
    gang_placement_strategy: Literal["PACK", "SPREAD"] = "PACK"
    runtime_failure_policy: Literal["RESTART_GANG", "RESTART_REPLICA"] = "RESTART_GANG"


class DeploymentActor(ConfigModel):
    """An item of `deployment_actors:` of an override."""

    name: str
    actor_class: str
    init_args: list[Any] = Field(default_factory=list)
    init_kwargs: dict[str, Any] = Field(default_factory=dict)
    actor_options: dict[str, Any] = Field(default_factory=dict)


class DeploymentOverride(ConfigModel):
    """An item of `deployments:` of an application."""

    name: str
    num_replicas: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    max_ongoing_requests: Annotated[int, Field(ge=1)] = 5
    max_queued_requests: Annotated[int, Field(ge=-1)] = -1
    backpressure_config: BackpressureOptions = BackpressureOptions()
    user_config: dict[str, Any] | None = None
    autoscaling_config: AutoscalingConfig | None = None
    graceful_shutdown_wait_loop_s: SecondsOrZero = 2
    graceful_shutdown_timeout_s: SecondsOrZero = 20
    health_check_period_s: Seconds = 10
    health_check_timeout_s: Seconds = 30
    ray_actor_options: ActorOptions = ActorOptions()
    placement_group_bundles: list[dict[str, Amount]] = Field(default_factory=list)
    placement_group_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    placement_group_bundle_label_selector: list[dict[str, str]] = Field(default_factory=list)
    max_replicas_per_node: Annotated[int, Field(ge=1, le=100)] = 100
    logging_config: LoggingOptions = LoggingOptions()
    request_router_config: RouterOptions = RouterOptions()
    gang_scheduling_config: GangOptions | None = None
    deployment_actors: list[DeploymentActor] | None = None
    rolling_update_percentage: Annotated[float, Field(gt=0, le=1)] = 0.2
    max_surge_percent: Annotated[int, Field(ge=0, le=100)] = 0

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if isinstance(self.num_replicas, int) and self.autoscaling_config is not None:
            raise ValueError("num_replicas and autoscaling_config exclude each other")
        return self


class ServeApplication(ConfigModel):
    """An item of `applications:`; `args:` is checked by the module that builds the application."""

    name: Annotated[str, Field(min_length=1)] = "default"
    route_prefix: (
        Annotated[str, Field(pattern=r"^/", json_schema_extra={EXPECTED: "a path that begins with /"})] | None
    ) = "/"
    import_path: Annotated[
        str,
        Field(
            pattern=r"^[\w.]+[:.]\w+$",
            json_schema_extra={EXPECTED: "the name of a builder, such as deployments.app:build_app"},
        ),
    ]
    runtime_env: RuntimeEnvironment = Field(default_factory=dict)
    host: Any = None
    port: Any = None
    deployments: list[DeploymentOverride] = Field(default_factory=list)
    autoscaling_policy: dict[str, Any] | None = None
    args: Any = None
    logging_config: LoggingOptions | None = None
    external_scaler_enabled: bool = False

    @field_validator("host", "port")
    @classmethod
    def _refuse_address(cls, value: Any) -> Any:
        raise ValueError("belongs under http_options; move it there")


class ServeFile(ConfigModel):
    """The whole file."""

    proxy_location: Literal["Disabled", "HeadOnly", "EveryNode"] = "EveryNode"
    http_options: HttpOptions | None = None
    grpc_options: GrpcOptions = GrpcOptions()
    controller_options: ControllerOptions | None = None
    logging_config: LoggingOptions | None = None
    tracing_config: TracingOptions | None = None
    applications: Annotated[list[ServeApplication], Field(min_length=1)]
    target_capacity: Annotated[float, Field(ge=0, le=100)] | None = None

    @field_validator("applications")
    @classmethod
    def _check_unique(cls, applications: list[ServeApplication]) -> list[ServeApplication]:
        for key in ("name", "route_prefix"):
            values = [value for each in applications if (value := getattr(each, key)) is not None]
            if doubled := sorted({value for value in values if values.count(value) > 1}):
                raise ValueError(f"have the {key} {', '.join(doubled)} more than once; give each one of its own")
        return applications
