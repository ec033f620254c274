"""The state of the application in Ray Serve.

The supervisor reads it during the start, the hub while a worker is down.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    """One deployment as Ray Serve reports it."""

    status: str = "UPDATING"
    """Serve's word for it: `UPDATING`, `HEALTHY`, `UNHEALTHY`, `DEPLOY_FAILED` and others."""
    replicas: int = 0
    """Replicas in any state, also those that start, wait for resources or stop."""
    starting: int = 0
    """Those that start or wait for resources."""
    message: str = ""

    @property
    def failed(self) -> bool:
        """A replica has failed before all were healthy. Serve may still start others."""
        return self.status == "DEPLOY_FAILED"

    @property
    def given_up(self) -> bool:
        """Serve has seen a failure and has no replica that may still become healthy."""
        return self.status in ("DEPLOY_FAILED", "UNHEALTHY") and not self.replicas

    @property
    def was_healthy(self) -> bool:
        """All replicas of this version were healthy before, and are not now."""
        return self.status == "UNHEALTHY"


@dataclass(frozen=True, slots=True)
class DeployStatus:
    """The state of the application as Ray Serve reports it."""

    failed: bool = False
    """At least one deployment has failed, or the application could not be built."""
    message: str = ""
    deployments: Mapping[str, DeploymentStatus] = field(default_factory=dict)
    """Every deployment, by its name."""
    hints: Mapping[str, str] = field(default_factory=dict)
    """The deployments that Serve still starts, and what they wait for."""

    @property
    def failures(self) -> Mapping[str, str]:
        """The deployments that have failed, and why."""
        return {name: last_line(one.message) for name, one in self.deployments.items() if one.failed}

    @property
    def given_up(self) -> Mapping[str, str]:
        """The deployments for which Serve tries nothing more, and why."""
        return {name: last_line(one.message) for name, one in self.deployments.items() if one.given_up}


def read_status(app_name: str) -> DeployStatus:
    """The present state. Blocks for some milliseconds. Raises Ray's exceptions when the cluster is gone."""
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    application = serve.status().applications.get(app_name)
    if application is None:
        return DeployStatus()
    deployments, hints = {}, {}
    for name, overview in application.deployments.items():
        counts = {str(state): count for state, count in overview.replica_states.items()}
        deployments[name] = DeploymentStatus(
            status=str(overview.status.value),
            replicas=sum(counts.values()),
            starting=counts.get("STARTING", 0),
            message=overview.message,
        )
        if overview.status not in ("HEALTHY", "DEPLOY_FAILED") and overview.message:
            hints[name] = first_sentence(overview.message)
    failed = application.status == ApplicationStatus.DEPLOY_FAILED
    return DeployStatus(failed, last_line(application.message), deployments, hints)


def last_line(message: str) -> str:
    """The last line of a traceback, without the name of the exception."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return re.sub(r"^[\w.]+(?:Error|Exception): ", "", lines[-1]) if lines else ""


def first_sentence(message: str) -> str:
    """The first sentence of Serve's explanation, which names what it waits for."""
    return " ".join(message.split()).partition(". ")[0]
