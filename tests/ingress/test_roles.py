"""A request that needs helper workers."""

from __future__ import annotations

import pytest

from deployments.multimodal.multimodal_request import MultimodalRequest
from deployments.multimodal.multimodal_worker import SPEC
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import WorkerLoading
from rbee_serve.ingress.services import IngressServices, Worker
from tests.ingress.application import services_of


def services(**uses: str) -> IngressServices:
    """One worker that is ready, and `speech-0`, which is still loading."""
    worker = Worker(WorkerConfig(id="multimodal-0", type="multimodal", uses=uses), SPEC, MultimodalRequest)
    speech = Worker(WorkerConfig(id="speech-0", type="audio"), SPEC, MultimodalRequest)
    return services_of({"multimodal-0": worker, "speech-0": speech}, "multimodal-0")


def test_it_is_refused_while_a_helper_worker_loads() -> None:
    found = services(audio="speech-0")
    worker = found.worker("multimodal-0")
    found.require_ready(worker)
    with pytest.raises(WorkerLoading, match="worker speech-0 is still loading; GET http://localhost/workers/speech-0"):
        found.require_ready(worker, {"audio"})


def test_an_unfilled_role_is_left_to_the_worker_to_refuse() -> None:
    found = services()
    found.require_ready(found.worker("multimodal-0"), {"audio"})
