"""What clients are told of Ray's and Serve's exceptions."""

from __future__ import annotations

import asyncio

import pytest
from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from rbee_serve.errors import WorkerStopping
from rbee_serve.ray_boundary import error_from_ray


@pytest.mark.parametrize(
    ("error", "code"),
    [
        # Serve notices some 100 ms after the hub that a replica has loaded, where another one could not.
        (DeploymentUnavailableError(DeploymentID("llm-1", "rbee")), "WORKER_LOST"),
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), "INSUFFICIENT_RESOURCES"),
        (ActorDiedError(), "WORKER_LOST"),
        (StopAsyncIteration(), "WORKER_LOST"),
        (ConnectionResetError("secret"), "WORKER_LOST"),
        (asyncio.CancelledError(), "WORKER_LOST"),
        (ValueError("secret"), "INTERNAL"),
    ],
)
def test_a_call_that_failed_may_be_sent_again(error: BaseException, code: str) -> None:
    told = error_from_ray(error, "llm-1")
    assert (told.code, told.retriable) == (code, True)
    assert "secret" not in told.message


def test_a_worker_error_is_passed_on() -> None:
    error = WorkerStopping("the server is being shut down")
    assert error_from_ray(error, "llm-1") is error
