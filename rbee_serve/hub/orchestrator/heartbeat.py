"""The heartbeat: its two forms, their URLs, and its schedule."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from rbee_serve.config import OrchestratorConfig
from rbee_serve.hub.orchestrator.message_schemas import HealthStatus, Heartbeat, Info, WorkerHeartbeat
from rbee_serve.state import WorkerState

_PATHS = {"hive": "/v1/heartbeat", "queen": "/v1/worker-heartbeat"}


def heartbeat_url(orchestrator: OrchestratorConfig) -> str:
    """The URL of heartbeats: the protocol's path at the origin of the callback URL."""
    origin = urlsplit(orchestrator.callback_url)
    return f"{origin.scheme}://{origin.netloc}{_PATHS[orchestrator.protocol]}"


def rfc3339(moment: datetime) -> str:
    """The moment in UTC to the millisecond, such as `2026-01-31T12:00:00.250Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def health_status(state: WorkerState) -> HealthStatus:
    """`degraded` while fewer replicas than desired accept requests, or during a shutdown."""
    return "degraded" if state.degraded or state.stopping else "healthy"


def hive_heartbeat(state: WorkerState, moment: datetime) -> Heartbeat:
    """rbee-hive's form."""
    return Heartbeat(worker_id=state.worker_id, timestamp=rfc3339(moment), health_status=health_status(state))


def queen_heartbeat(info: dict[str, Any], moment: datetime) -> WorkerHeartbeat:
    """queen-rbee's form: `info` is the worker's `/info` object."""
    return WorkerHeartbeat(worker=Info(**info), timestamp=rfc3339(moment))


class HeartbeatSchedule:
    """A fixed interval on a monotonic clock. Missed heartbeats are skipped, so none ever queues up."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self.next_due_at = math.inf
        """When the next one is due; never, before `start`."""

    def start(self, now: float) -> None:
        """The first one is due now. A schedule that runs already is kept."""
        if self.next_due_at == math.inf:
            self.next_due_at = now

    def sent(self, now: float) -> None:
        """The one that was due has been sent: the next one is the first of the schedule after `now`."""
        missed = math.floor((now - self.next_due_at) / self._interval_s)
        self.next_due_at += (missed + 1) * self._interval_s
