"""`autoscaling:` of a worker, and `autoscaling_config` of Ray Serve's own overrides."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rbee_serve.config.base import ConfigModel

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class AutoscalingPolicy(ConfigModel):
    """A function of one's own that decides the number of replicas."""

    policy_function: str = "ray.serve.autoscaling_policy:default_autoscaling_policy"
    """Its import path."""
    policy_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Its further arguments."""


class AutoscalingConfig(ConfigModel):
    """Ray Serve's `AutoscalingConfig` by its own names, whose own reader drops unknown keys. A test compares them."""

    min_replicas: Annotated[int, Field(ge=0, le=1024)] = 1
    """The smallest number of replicas. Ray's 0 is refused: the ingress sends requests to workers with a replica only,
    and Ray Serve starts one where requests arrive."""
    initial_replicas: Annotated[int, Field(ge=0, le=1024)] | None = None
    """The number at the start; `min_replicas` if left out."""
    max_replicas: Annotated[int, Field(ge=1, le=1024)] = 1
    """The largest number of replicas."""
    target_ongoing_requests: Positive | None = 2.0
    """Requests that run or wait in each replica, on average."""
    metrics_interval_s: Positive = 10.0
    """Deprecated by Ray."""
    look_back_period_s: Positive = 30.0
    """Seconds over which requests are averaged."""
    smoothing_factor: Positive = 1.0
    """Deprecated by Ray."""
    upscale_smoothing_factor: Positive | None = None
    """Deprecated by Ray; `upscaling_factor`."""
    downscale_smoothing_factor: Positive | None = None
    """Deprecated by Ray; `downscaling_factor`."""
    upscaling_factor: Positive | None = None
    """Above 1: more replicas at once when scaling up."""
    downscaling_factor: Positive | None = None
    """Above 1: fewer replicas at once when scaling down."""
    downscale_delay_s: NotNegative = 600.0
    """Seconds before a replica is stopped."""
    downscale_to_zero_delay_s: NotNegative | None = None
    """Seconds before the last replica is stopped; `downscale_delay_s` if left out."""
    upscale_delay_s: NotNegative = 30.0
    """Seconds before a replica is added."""
    aggregation_function: Literal["mean", "max", "min"] = "mean"
    """How requests are aggregated over the period."""
    policy: AutoscalingPolicy = AutoscalingPolicy()
    """A policy of one's own."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.min_replicas == 0:
            raise ValueError(
                "min_replicas: 0 would stop the last replica, and no request starts another; set at least 1"
            )
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas: {self.max_replicas} is below min_replicas: {self.min_replicas}")
        initial = self.initial_replicas
        if initial is not None and not self.min_replicas <= initial <= self.max_replicas:
            raise ValueError(f"initial_replicas: {initial} is not between min_replicas and max_replicas")
        return self
