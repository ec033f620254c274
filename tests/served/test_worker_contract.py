"""The contract of every registered worker type towards a client: one suite, run against each of them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from deployments.registry import WORKER_TYPES
from rbee_serve.events import End, Metrics
from rbee_serve.grammar import check_stream
from rbee_serve.worker.registry import load_spec
from rbee_serve.worker.spec import WorkerSpec
from tests.conftest import Served
from tests.served.long_requests import long_request
from tests.served.models import (
    DIGITS,
    EMBED,
    EMBEDDING,
    GENERATE,
    LLM,
    MULTIMODAL,
    RERANKER,
    SPEECH,
    TRANSCRIBE,
    serving,
)
from tests.served.waiting import eventually

SERVED: dict[str, dict[str, Any]] = {
    "audio/generate": SPEECH,
    "audio/transcribe": TRANSCRIBE,
    "echo": {"id": "echo-0"},
    "embedding": EMBEDDING,
    "llm": LLM,
    "multimodal": MULTIMODAL,
    "reranker": RERANKER,
    "vision/classify": DIGITS,
    "vision/embed": EMBED,
    "vision/generate": GENERATE,
}
"""The worker of each type in the application of the tests."""

NOT_IN_THE_DEFAULT_CONFIGURATION = ("reranker", "vision/embed")
COUNTED_BY_THE_ENGINE = ("llm", "multimodal")
"""Types whose replicas report `engine_requests`, the count of the engine's own scheduler."""
CLIENTS = 4
"""Clients that disconnect at once: the work of all their requests would take far longer than `STOPS_WITHIN_S`."""
STOPS_WITHIN_S = 5


def marks(name: str) -> list[pytest.MarkDecorator]:
    """The worker that a type needs, and the tier of the types that the default configuration does not have."""
    if name == "echo":
        return []
    return [serving(SERVED[name]), *([pytest.mark.full] if name in NOT_IN_THE_DEFAULT_CONFIGURATION else [])]


every_worker = pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in sorted(WORKER_TYPES)])
pytestmark = pytest.mark.ray


@pytest.fixture
def spec(name: str) -> WorkerSpec[Any]:
    return load_spec(WORKER_TYPES[name])


@pytest.fixture
def worker_id(name: str) -> str:
    return str(SERVED[name]["id"])


@pytest.fixture
def base(served: Served, worker_id: str) -> str:
    served.wait_until_ready([worker_id], 240)
    return served.base(worker_id)


@pytest.fixture
def body(spec: WorkerSpec[Any]) -> dict[str, Any]:
    return dict(json.loads(spec.warm_up().model_dump_json(exclude_unset=True)))


def streamed(base: str, spec: WorkerSpec[Any], body: dict[str, Any]) -> list[Any]:
    """The events of a well-formed stream."""
    return check_stream(httpx.post(f"{base}/v1/inference", json=body, timeout=120).content, *spec.outputs)


@every_worker
def test_a_stream_follows_the_grammar_and_reports_metrics(base: str, spec: WorkerSpec[Any], body: Any) -> None:
    events = streamed(base, spec, body)
    assert isinstance(events[-1], End)
    assert any(isinstance(event, Metrics) and event.values["vram_bytes"] > 0 for event in events)


@every_worker
def test_one_result_is_the_end_of_the_stream(base: str, spec: WorkerSpec[Any], body: Any) -> None:
    response = httpx.post(f"{base}/v1/inference", json={**body, "stream": False, "job_id": "j-1"}, timeout=120)
    result, end = response.json(), streamed(base, spec, body)[-1]
    assert result["job_id"] == "j-1"
    assert (result["tokens_out"], result["stop_reason"]) == (end.tokens_out, end.stop_reason)
    assert result["metrics"]["vram_bytes"] > 0


@every_worker
def test_an_unknown_field_is_refused(base: str, body: Any) -> None:
    response = httpx.post(f"{base}/v1/inference", json={**body, "no_such_field": 1})
    assert response.status_code == 400
    assert [(e["field"], e["constraint"]) for e in response.json()["errors"]] == [("no_such_field", "unknown field")]


@every_worker
def test_every_number_out_of_bounds_is_refused_by_name(base: str, spec: WorkerSpec[Any], body: Any) -> None:
    for field, schema in spec.request.model_json_schema()["properties"].items():
        for option in [schema, *schema.get("anyOf", ())]:
            if "maximum" in option:
                response = httpx.post(f"{base}/v1/inference", json={**body, field: option["maximum"] + 1})
                assert (response.status_code, response.json()["errors"][0]["field"]) == (400, field)


@every_worker
def test_readiness_health_and_info_describe_the_worker(base: str, spec: WorkerSpec[Any]) -> None:
    assert httpx.get(f"{base}/v1/ready").json()["model_loaded"] is True
    assert httpx.get(f"{base}/health").json()["vram_bytes"] > 0
    info = httpx.get(f"{base}/info").json()
    assert (info["implementation"], info["device"]) == (f"rbee-serve/{spec.name}", "CPU-0")


@every_worker
async def test_a_disconnect_cancels_a_long_request(
    served: Served, base: str, spec: WorkerSpec[Any], worker_id: str, name: str
) -> None:
    def running() -> int:
        return sum(replica.running for replica in served.replicas(worker_id))

    def in_the_engine() -> int:
        return sum(replica.engine_requests or 0 for replica in served.replicas(worker_id))

    body = long_request(name, spec)
    async with httpx.AsyncClient(timeout=60) as client:
        requests = [asyncio.create_task(client.post(f"{base}/v1/inference", json=body)) for _ in range(CLIENTS)]
        counted = in_the_engine if name in COUNTED_BY_THE_ENGINE else running
        await asyncio.to_thread(eventually, lambda: counted() > 0)
        early = [request.result().text[:300] for request in requests if request.done()]
        assert not early, "a long request takes seconds"
        for request in requests:
            request.cancel()
    await asyncio.to_thread(eventually, lambda: served.working(worker_id) + in_the_engine() == 0, STOPS_WITHIN_S)
