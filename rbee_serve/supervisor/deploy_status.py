"""The state of the application in Ray Serve."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DeployStatus:
    """The state of the application as Ray Serve reports it."""

    failed: bool = False
    """Serve has given up at least one deployment, or the application could not be built."""
    message: str = ""
    failures: Mapping[str, str] = field(default_factory=dict)
    """The deployments that Serve has given up, and why."""
    hints: Mapping[str, str] = field(default_factory=dict)
    """The deployments that Serve still starts, and what they wait for."""


def read_status(app_name: str) -> DeployStatus:
    """The present state. Raises Ray's exceptions when the cluster is gone."""
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    application = serve.status().applications.get(app_name)
    if application is None:
        return DeployStatus()
    failures, hints = {}, {}
    for name, overview in application.deployments.items():
        if overview.status == "DEPLOY_FAILED":
            failures[name] = last_line(overview.message)
        elif overview.status != "HEALTHY" and overview.message:
            hints[name] = first_sentence(overview.message)
    failed = application.status == ApplicationStatus.DEPLOY_FAILED
    return DeployStatus(failed, last_line(application.message), failures, hints)


def last_line(message: str) -> str:
    """The last line of a traceback, without the name of the exception."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return re.sub(r"^[\w.]+(?:Error|Exception): ", "", lines[-1]) if lines else ""


def first_sentence(message: str) -> str:
    """The first sentence of Serve's explanation, which names what it waits for."""
    return " ".join(message.split()).partition(". ")[0]
