"""The heartbeat: its two forms, where each goes, and the beat that it keeps."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import urlsplit

from rbee_serve.config import OrchestratorConfig
from rbee_serve.state import WorkerState

HealthStatus = Literal["healthy", "degraded"]

_PATHS = {"hive": "/v1/heartbeat", "queen": "/v1/worker-heartbeat"}


def heartbeat_url(orchestrator: OrchestratorConfig) -> str:
    """Where heartbeats go: a path of the protocol's own at the origin of the callback URL."""
    origin = urlsplit(orchestrator.callback_url)
    return f"{origin.scheme}://{origin.netloc}{_PATHS[orchestrator.protocol]}"


def rfc3339(moment: datetime) -> str:
    """The moment in UTC to the millisecond, such as `2026-01-31T12:00:00.250Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def health_status(state: WorkerState) -> HealthStatus:
    """`degraded` when fewer replicas take requests than are wanted, or none does because of a shutdown."""
    return "degraded" if state.degraded or state.stopping else "healthy"


def hive_heartbeat(state: WorkerState, moment: datetime) -> dict[str, Any]:
    """rbee-hive's form."""
    return {"worker_id": state.worker_id, "timestamp": rfc3339(moment), "health_status": health_status(state)}


def queen_heartbeat(info: dict[str, Any], moment: datetime) -> dict[str, Any]:
    """queen-rbee's form: `info` is the worker's `/info` object."""
    return {"worker": info, "timestamp": rfc3339(moment)}


class HeartbeatSchedule:
    """A fixed beat on a monotonic clock. A beat that is missed is left out, so none ever queues up."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self.next_due_at = math.inf
        """When the next one is due; never, before the start."""

    def start(self, now: float) -> None:
        """The first one is due now. A beat that has begun goes on as it is."""
        if self.next_due_at == math.inf:
            self.next_due_at = now

    def done(self, now: float) -> None:
        """The one that was due has been sent: on to the first one after `now`."""
        missed = math.floor((now - self.next_due_at) / self._interval_s)
        self.next_due_at += (missed + 1) * self._interval_s
