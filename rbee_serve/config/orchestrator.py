"""`orchestrator:`"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rbee_serve.config.base import ConfigModel
from rbee_serve.config.sentences import EXPECTED

_Url = Annotated[
    str,
    Field(
        pattern=r"^https?://[^\s/]+(/\S*)?$",
        json_schema_extra={EXPECTED: "a URL such as http://hive:9200/v1/workers/ready"},
    ),
]


class OrchestratorConfig(ConfigModel):
    """The orchestrator that is notified of workers that are ready, and receives their heartbeats."""

    callback_url: _Url
    """Where the ready callback is POSTed, such as `http://hive:9200/v1/workers/ready`. For `protocol: queen` its
    origin is where heartbeats go too."""
    protocol: Literal["hive", "queen"] = "hive"
    """`hive`: heartbeats to `/v1/heartbeat` with the worker's id. `queen`: to `/v1/worker-heartbeat` with all of
    `/info`."""
    heartbeat_interval_s: Annotated[float, Field(gt=0, le=80)] = 30.0
    """Seconds between heartbeats. Receivers drop a worker after 90 s without one."""
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 5.0
    """Deadline of one call in seconds, from the DNS lookup to the last byte."""
    ready_backoff_max_s: Annotated[float, Field(gt=0, le=600)] = 30.0
    """The longest pause between two attempts of the ready callback. The first is 0.5 s, each next one is doubled."""
    on_error_url: _Url | None = None
    """Where a load that failed for good is reported. It is never sent to the ready URL."""
