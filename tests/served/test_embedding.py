"""The embedding worker, end to end: all-MiniLM-L6-v2 behind the whole application."""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import Any

import httpx
import pytest

from deployments.embedding.embedding_worker import EmbeddingRequest
from rbee_serve.client.client import Client
from rbee_serve.errors import InvalidRequest
from rbee_serve.events import End, Metrics, Output
from rbee_serve.grammar import check_stream
from rbee_serve.outputs import EmbeddingOutput
from tests.conftest import Served
from tests.served.models import EMBEDDING, serving
from tests.served.waiting import eventually

pytestmark = [pytest.mark.ray, serving(EMBEDDING)]

TEXTS = ["A cat sleeps on the sofa.", "The kitten naps on the couch.", "Share prices fell sharply today."]


@pytest.fixture(autouse=True)
def loaded(served: Served) -> None:
    eventually(lambda: httpx.get(f"{served.base('embedding-0')}/v1/ready").json()["ready"], 300)


def post(served: Served, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{served.base('embedding-0')}/v1/inference", json=body, timeout=60)


def similarity(one: Any, other: Any) -> float:
    return float(sum(x * y for x, y in zip(one, other, strict=True)))


def test_vectors_are_sent_as_a_stream_and_as_one_result(served: Served) -> None:
    events = check_stream(post(served, {"input": TEXTS}).content, EmbeddingOutput)
    cat, kitten, shares = [event.value.embedding for event in events if isinstance(event, Output)]
    assert similarity(cat, kitten) > 0.5 > 0.2 > similarity(cat, shares)
    assert any(isinstance(event, Metrics) and event.values["tokens_in"] == 27 for event in events)
    assert isinstance(events[-1], End)
    result = post(served, {"input": TEXTS, "stream": False, "encoding": "base64"}).json()
    assert (result["dim"], result["tokens_out"], len(result["embeddings"])) == (384, 3, 3)
    assert struct.unpack("<384f", base64.b64decode(result["embeddings"][0])) == pytest.approx(cat, abs=1e-6)


def test_the_client_and_the_handle_return_typed_vectors(served: Served) -> None:
    with Client(served.url, outputs=[EmbeddingOutput]) as client, client.stream("embedding-0", input=TEXTS) as events:
        over_http = [event.value for event in events if isinstance(event, Output)]
    stream = served.handle("embedding-0").options(stream=True).stream_events.remote(EmbeddingRequest(input=TEXTS))
    by_handle = [event.value for event in stream if isinstance(event, Output)]
    assert [(value.i, value.dim) for value in by_handle] == [(0, 384), (1, 384), (2, 384)]
    for one, other in zip(over_http, by_handle, strict=True):
        assert isinstance(one, EmbeddingOutput)
        assert similarity(one.embedding, other.embedding) > 0.99999
    with pytest.raises(InvalidRequest, match=r"input\[1\]: has 302 tokens, but the model takes 256"):
        served.handle("embedding-0").collect.remote({"input": ["a", "a " * 300]}).result(timeout_s=60)


async def test_concurrent_clients_get_their_own_vectors(served: Served) -> None:
    url = f"{served.base('embedding-0')}/v1/inference"
    async with httpx.AsyncClient(timeout=120) as client:
        bodies = [{"input": [f"number {n}", *TEXTS], "stream": False} for n in range(24)]
        responses = await asyncio.gather(*(client.post(url, json=body) for body in bodies))
    vectors = [response.json()["embeddings"] for response in responses]
    assert min(similarity(each[1], vectors[0][1]) for each in vectors) > 0.99999
    assert max(similarity(each[0], vectors[0][0]) for each in vectors[1:]) < 0.999


def test_a_text_that_is_too_long_is_refused_with_its_index_or_truncated_on_request(served: Served) -> None:
    response = post(served, {"input": ["a", "word " * 300]})
    assert (response.status_code, response.json()["code"]) == (400, "INVALID_REQUEST")
    assert [error["field"] for error in response.json()["errors"]] == ["input[1]"]
    assert post(served, {"input": ["a", "word " * 300], "truncate": True}).status_code == 200
