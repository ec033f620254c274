"""A request that needs other workers beside its own."""

from __future__ import annotations

import pytest

from deployments.multimodal.multimodal_request import MultimodalRequest
from deployments.multimodal.multimodal_worker import SPEC
from rbee_serve.config import LimitsConfig, WorkerConfig
from rbee_serve.errors import WorkerLoading
from rbee_serve.ingress.router import Router
from rbee_serve.ingress.services import IngressServices, Worker
from tests.ingress.application import ready_view, seconds_since_last_push


def services(**uses: str) -> IngressServices:
    """One worker that is ready, and `speech-0`, which still loads."""
    worker = Worker(WorkerConfig(id="multimodal-0", type="multimodal", uses=uses), SPEC, MultimodalRequest)
    speech = Worker(WorkerConfig(id="speech-0", type="audio"), SPEC, MultimodalRequest)
    router = Router({}, 1.0, seconds_since_last_push, lambda worker_id, heard_at: False)
    workers = {"multimodal-0": worker, "speech-0": speech}
    return IngressServices(workers, LimitsConfig(), ready_view("multimodal-0"), router, "http://localhost", 80)


def test_it_is_refused_while_one_of_them_loads() -> None:
    found = services(audio="speech-0")
    worker = found.worker("multimodal-0")
    found.require_ready(worker)
    with pytest.raises(WorkerLoading, match="worker speech-0 is still loading; GET http://localhost/workers/speech-0"):
        found.require_ready(worker, {"audio"})


def test_a_role_that_nobody_has_is_left_to_the_worker_to_tell() -> None:
    found = services()
    found.require_ready(found.worker("multimodal-0"), {"audio"})
