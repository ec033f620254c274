"""What every registered worker does towards a client: one suite, run against each of them."""

from __future__ import annotations

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
from tests.served.waiting import eventually

with_models = (
    *("embedding", "audio/generate", "audio/transcribe", "reranker"),
    *("vision/classify", "vision/embed", "vision/generate"),
)
needs = {name: [pytest.mark.model] for name in with_models}
needs |= {name: [pytest.mark.vllm] for name in ("llm", "multimodal")}
every_worker = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs.get(name, [])) for name in sorted(WORKER_TYPES)]
)
pytestmark = pytest.mark.ray


@pytest.fixture
def spec(name: str) -> WorkerSpec[Any]:
    return load_spec(WORKER_TYPES[name])


@pytest.fixture
def worker_id(name: str) -> str:
    return f"{name.replace('/', '-')}-0"


@pytest.fixture
def base(served: Served, worker_id: str) -> str:
    url = served.base(worker_id)
    with httpx.Client() as client:  # one for all polls: making one costs 30 ms, and the model loads meanwhile
        eventually(lambda: client.get(f"{url}/v1/ready").json()["ready"], 240)
    return url


@pytest.fixture
def body(spec: WorkerSpec[Any]) -> dict[str, Any]:
    return dict(json.loads(spec.warm_up().model_dump_json(exclude_unset=True)))


@every_worker
def test_it_streams_by_the_grammar_and_tells_how_fast_it_was(base: str, spec: WorkerSpec[Any], body: Any) -> None:
    answer = httpx.post(f"{base}/v1/inference", json=body, timeout=120)
    events = check_stream(answer.content, *spec.outputs)
    assert isinstance(events[-1], End)
    assert any(isinstance(event, Metrics) and event.values["vram_bytes"] > 0 for event in events)


@every_worker
def test_it_gives_one_result_too(base: str, body: Any) -> None:
    result = httpx.post(f"{base}/v1/inference", json={**body, "stream": False, "job_id": "j-1"}, timeout=120).json()
    assert result["job_id"] == "j-1"
    assert result["tokens_out"] >= 0
    assert result["stop_reason"] in ("COMPLETE", "MAX_TOKENS", "EOS", "STOP_SEQUENCE")


@every_worker
def test_it_refuses_a_field_that_it_does_not_know(base: str, body: Any) -> None:
    answer = httpx.post(f"{base}/v1/inference", json={**body, "no_such_field": 1})
    assert answer.status_code == 400
    assert [(e["field"], e["constraint"]) for e in answer.json()["errors"]] == [("no_such_field", "unknown field")]


@every_worker
def test_it_refuses_every_number_out_of_bounds_by_name(base: str, spec: WorkerSpec[Any], body: Any) -> None:
    for field, schema in spec.request.model_json_schema()["properties"].items():
        for option in [schema, *schema.get("anyOf", ())]:
            if "maximum" in option:
                answer = httpx.post(f"{base}/v1/inference", json={**body, field: option["maximum"] + 1})
                assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, field)


@every_worker
def test_it_tells_that_it_is_ready_healthy_and_what_it_is(base: str, spec: WorkerSpec[Any]) -> None:
    assert httpx.get(f"{base}/v1/ready").json()["model_loaded"] is True
    assert httpx.get(f"{base}/health").json()["vram_bytes"] > 0
    info = httpx.get(f"{base}/info").json()
    assert (info["implementation"], info["device"]) == (f"rbee-serve/{spec.name}", "CPU-0")


@every_worker
def test_nothing_runs_on_when_its_client_has_left(served: Served, base: str, worker_id: str, body: Any) -> None:
    for _ in range(5):
        with httpx.stream("POST", f"{base}/v1/inference", json=body, timeout=120) as answer:
            next(answer.iter_bytes())
    eventually(lambda: served.working(worker_id) == 0, 5)
