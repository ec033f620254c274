"""What Ray Serve's own status objects mean for a deployment."""

from __future__ import annotations

import pytest
from ray import serve
from ray.serve import schema as serve_schema
from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview, ServeStatus

from rbee_serve.deploy_status import DeploymentStatus, DeployStatus, read_status

TRACEBACK = "The deployment failed to start 1 times in a row.\nTraceback\nValueError: no such file\n"


def overview(status: str, message: str = "", **replicas: int) -> DeploymentStatusOverview:
    return DeploymentStatusOverview(
        status=serve_schema.DeploymentStatus(status),
        status_trigger="UNSPECIFIED",
        replica_states=replicas,
        message=message,
    )


@pytest.fixture
def status(monkeypatch: pytest.MonkeyPatch) -> DeployStatus:
    """The status of an application with a deployment of each kind."""
    deployments = {
        "good": overview("HEALTHY", RUNNING=1),
        "waits": overview("UPDATING", "It waits for 4 CPUs. More.", STARTING=1),
        "replaced": overview("UNHEALTHY", "A health check failed. More.", STARTING=1, STOPPING=1),
        "half": overview("DEPLOY_FAILED", TRACEBACK, STARTING=1),
        "gone": overview("DEPLOY_FAILED", TRACEBACK),
    }
    application = ApplicationStatusOverview(
        status=serve_schema.ApplicationStatus.DEPLOY_FAILED,
        message=TRACEBACK,
        last_deployed_time_s=0,
        deployments=deployments,
    )
    monkeypatch.setattr(serve, "status", lambda: ServeStatus(applications={"rbee": application}))
    return read_status("rbee")


def test_replicas_are_counted_by_what_they_do(status: DeployStatus) -> None:
    counts = {name: (one.status, one.replicas, one.starting) for name, one in status.deployments.items()}
    assert counts == {
        "good": ("HEALTHY", 1, 0),
        "waits": ("UPDATING", 1, 1),
        "replaced": ("UNHEALTHY", 2, 1),
        "half": ("DEPLOY_FAILED", 1, 1),
        "gone": ("DEPLOY_FAILED", 0, 0),
    }
    assert [name for name, one in status.deployments.items() if one.was_healthy] == ["replaced"]


def test_only_a_failed_deployment_without_a_replica_is_given_up(status: DeployStatus) -> None:
    assert status.failed
    assert status.failures == {"half": "no such file", "gone": "no such file"}
    assert status.given_up == {"gone": "no such file"}


def test_the_hints_are_about_deployments_that_are_still_started(status: DeployStatus) -> None:
    assert status.hints == {"waits": "It waits for 4 CPUs", "replaced": "A health check failed"}


def test_an_application_that_serve_does_not_know_has_no_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "status", lambda: ServeStatus(applications={}))
    assert read_status("rbee") == DeployStatus()
    assert DeploymentStatus().given_up is False
