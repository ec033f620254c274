"""The language model, end to end: SmolLM2-135M-Instruct in vLLM behind the whole application."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from rbee_serve.client.client import Client
from rbee_serve.events import End, Event, Metrics, Narration, Output, StopReason
from rbee_serve.grammar import check_stream
from tests.conftest import Served
from tests.served.models import LLM, serving
from tests.served.waiting import eventually

pytestmark = [pytest.mark.ray, serving(LLM)]

GREEDY = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}


@pytest.fixture(autouse=True)
def loaded(served: Served) -> None:
    eventually(lambda: httpx.get(f"{served.base('llm-0')}/v1/ready").json()["ready"], 300)


def stream(served: Served, **body: Any) -> list[Event[Any]]:
    response = httpx.post(f"{served.base('llm-0')}/v1/inference", json=body, timeout=120)
    assert response.status_code == 200, response.text
    return check_stream(response.content)


def text(events: list[Event[Any]]) -> str:
    return "".join(event.value.t for event in events if isinstance(event, Output))


def last(events: list[Event[Any]]) -> End:
    assert isinstance(events[-1], End), events[-1]
    return events[-1]


def test_it_generates_real_text_with_an_event_for_each_token(served: Served) -> None:
    events = stream(served, **GREEDY)
    assert text(events).startswith(" Paris")
    assert (last(events).tokens_out, last(events).stop_reason) == (8, StopReason.MAX_TOKENS)
    assert sum(isinstance(event, Output) for event in events) == 8
    [metrics] = [event.values for event in events if isinstance(event, Metrics)]
    assert metrics["tokens_per_sec"] > 0
    assert (metrics["tokens_in"], metrics["tokens_out"]) == (5, 8)
    assert 0 < metrics["time_to_first_token_ms"] < 60_000
    assert metrics["vram_bytes"] > 100 * 1024**2
    assert [event.action for event in events if isinstance(event, Narration)] == ["prefill", "complete"]


def test_a_chat_is_rendered_with_the_model_s_own_template(served: Served) -> None:
    messages = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
    events = stream(served, messages=messages, max_tokens=40, temperature=0)
    assert "Paris" in text(events)
    assert last(events).stop_reason == StopReason.EOS


@pytest.mark.parametrize("seed", [7, 2**63, 2**64 - 1])
def test_a_seed_reproduces_the_text_and_is_returned(served: Served, seed: int) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 1.5, "seed": seed}
    first, second = stream(served, **body), stream(served, **body)
    assert text(first) == text(second)
    assert last(first).seed == seed


def test_a_stop_sequence_is_reported_and_is_not_in_the_text(served: Served) -> None:
    events = stream(served, prompt="1, 2, 3,", stop=["7", "never"], max_tokens=50, temperature=0)
    assert (last(events).stop_reason, last(events).stop_sequence_matched) == (StopReason.STOP_SEQUENCE, "7")
    assert text(events).strip() == "4, 5, 6,"
    assert sum(isinstance(event, Output) for event in events) == last(events).tokens_out


def test_a_request_that_exceeds_the_context_is_refused_with_the_numbers(served: Served) -> None:
    body = {"prompt": "word " * 5000, "max_tokens": 8}
    response = httpx.post(f"{served.base('llm-0')}/v1/inference", json=body, timeout=60)
    assert (response.status_code, response.json()["code"]) == (400, "INVALID_REQUEST")
    assert "exceed the model's context of 4096" in response.json()["message"]


def test_an_unknown_lora_adapter_is_refused_by_name(served: Served) -> None:
    response = httpx.post(
        f"{served.base('llm-0')}/v1/inference", json={**GREEDY, "lora": "x", "stream": False}, timeout=60
    )
    assert (response.status_code, response.json()["code"]) == (400, "INVALID_REQUEST")
    assert "no such adapter" in response.json()["message"]


async def test_thirty_two_concurrent_streams_are_all_well_formed(served: Served) -> None:
    url = f"{served.base('llm-0')}/v1/inference"
    async with httpx.AsyncClient(timeout=300) as client:
        bodies = [{"prompt": f"{n} Once upon a time", "max_tokens": 16, "ignore_eos": True} for n in range(32)]
        responses = await asyncio.gather(*(client.post(url, json=body) for body in bodies))
    for response in responses:
        assert last(check_stream(response.content)).tokens_out == 16


def test_a_disconnect_cancels_the_request_in_the_engine(served: Served) -> None:
    url = f"{served.base('llm-0')}/v1/inference"
    body = {"prompt": "Once", "max_tokens": 1500, "ignore_eos": True}
    with httpx.stream("POST", url, json=body, timeout=60) as response:
        for chunk in response.iter_text():
            if '"token"' in chunk:
                eventually(lambda: served.replicas("llm-0")[0].engine_requests == 1)
                break  # which closes the connection
    eventually(lambda: served.working("llm-0") == 0, 3)
    started_at = time.monotonic()
    stream(served, **GREEDY)
    assert time.monotonic() - started_at < 30


def test_the_client_and_the_handle_return_the_text_of_http(served: Served) -> None:
    over_http = text(stream(served, **GREEDY))
    with Client(served.url) as client:
        with client.stream("llm-0", GREEDY) as events:
            assert text(list(events)) == over_http
        assert client.infer("llm-0", GREEDY)["text"] == over_http
    assert served.handle("llm-0").collect.remote(GREEDY).result(timeout_s=60).output == {"text": over_http}


def test_the_orchestrator_received_no_invalid_message(served: Served) -> None:
    assert served.hive.wrong == []
