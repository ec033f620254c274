"""Both clients against a small real server: each test runs with the blocking and with the async one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import pytest

from rbee_serve.client import AsyncClient, Client, Health, Readiness, ReplicaInfo, Unauthorized
from rbee_serve.errors import (
    InferenceTimeout,
    InternalError,
    InvalidRequest,
    Violation,
    WorkerLoading,
    WorkerLost,
    WorkerNotFound,
    WorkerUnhealthy,
)
from rbee_serve.request import InferenceRequest
from rbee_serve.result import EncodedResult
from rbee_serve.state import LoadProgress
from tests.fake_server import END, FILE, LOST, PATCH, STARTED, TOKEN, TOKENS, PatchOutput, Server, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


class Blocking:
    """`AsyncClient` with the methods of `Client`, so that one test can be run against both."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._make(*arguments, **options))

    async def _make(self, *arguments: Any, **options: Any) -> AsyncClient:
        return AsyncClient(*arguments, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if name in ("stream", "loading_progress"):
            return lambda *arguments, **fields: self._iterated(method(*arguments, **fields))
        return lambda *arguments, **fields: self._runner.run(method(*arguments, **fields))

    @contextmanager
    def _iterated(self, manager: Any) -> Iterator[Iterator[Any]]:
        items = self._runner.run(manager.__aenter__())

        async def following() -> Any:
            return await anext(items, None)

        try:
            yield iter(lambda: self._runner.run(following()), None)
        finally:
            self._runner.run(manager.__aexit__(None, None, None))


@pytest.fixture(params=[Client, Blocking], ids=["Client", "AsyncClient"])
def client_type(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def client(server: Server, client_type: Any) -> Iterator[Any]:
    server.body, server.ready_requests = {}, 0
    server.disconnected.clear()
    with client_type(server.url, outputs=(PatchOutput,)) as made:
        yield made


def events_of(client: Any, worker: str | None, *arguments: Any, **fields: Any) -> list[Any]:
    with client.stream(worker, *arguments, **fields) as events:
        return list(events)


@pytest.mark.parametrize("worker", ["good", "bytewise", "crlf", "unknown", "zipped", "behind"])
def test_a_stream_has_its_events_in_any_chunks(client: Any, worker: str) -> None:
    assert events_of(client, worker, prompt="a") == [STARTED, *TOKENS, END]


def test_outputs_of_other_types_are_parsed_where_they_are_given(client: Any) -> None:
    assert events_of(client, "patch", prompt="a") == [STARTED, PATCH, END]


def test_an_error_event_is_yielded(client: Any) -> None:
    assert events_of(client, "failing", prompt="a") == [STARTED, LOST]
    assert isinstance(LOST.to_exception(), WorkerLost)


def test_a_stream_without_its_marker_is_a_lost_worker(client: Any) -> None:
    events_read = []
    with pytest.raises(WorkerLost, match="cut before its end"), client.stream("cut", prompt="a") as events:  # noqa: PT012
        for event in events:
            events_read.append(event)  # noqa: PERF402
    assert events_read == [STARTED, *TOKENS, END]


def test_data_that_is_no_event_is_an_internal_error(client: Any) -> None:
    with pytest.raises(InternalError, match="not an event"):
        events_of(client, "garbage", prompt="a")


def test_an_early_exit_from_the_stream_closes_the_connection(client: Any, server: Server) -> None:
    with client.stream("endless", prompt="a") as events:
        assert next(events) == STARTED
        assert next(events) == TOKENS[0]
    assert server.disconnected.wait(2)


def test_an_exception_within_the_stream_closes_the_connection_and_is_not_replaced(client: Any, server: Server) -> None:
    with pytest.raises(KeyError), client.stream("endless", prompt="a") as events:  # noqa: PT012
        next(events)
        raise KeyError
    assert server.disconnected.wait(2)


def test_a_request_is_a_dict_or_a_model_or_fields_or_several_of_them(client: Any, server: Server) -> None:
    class Sample(InferenceRequest):
        prompt: str
        seed: int = 7

    events_of(client, "good", {"prompt": "a"}, seed=3)
    assert server.body == {"prompt": "a", "seed": 3, "stream": True}
    events_of(client, "good", Sample(prompt="b", stream=False))
    assert server.body == {"prompt": "b", "stream": True}
    client.infer(None, prompt="c", model="m", worker="w", request="r")
    assert server.body == {"prompt": "c", "model": "m", "worker": "w", "request": "r", "stream": False}


def test_infer_returns_the_result(client: Any) -> None:
    assert client.infer("good", prompt="a") == {"text": "Hello", "stop_reason": "EOS"}


def test_infer_file_returns_the_bytes_and_their_type(client: Any, server: Server) -> None:
    assert client.infer_file("speaks", prompt="a", format="wav") == EncodedResult(FILE, "audio/wav")
    assert server.body == {"prompt": "a", "format": "wav", "stream": False}
    assert client.infer_file("good", prompt="a").media_type == "application/json"
    with pytest.raises(WorkerLoading):
        client.infer_file("loading", prompt="a")


def test_infer_on_a_file_names_infer_file(client: Any) -> None:
    with pytest.raises(InternalError, match=r"use infer_file\(\)"):
        client.infer("speaks", prompt="a")


def test_a_refusal_is_raised_with_every_violation(client: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        events_of(client, "invalid", max_tokens=4096)
    assert caught.value.violations == (
        Violation("max_tokens", "<= 2048", "must be at most 2048", 4096, has_value=True),
        Violation("prompt", "required", "is required"),
    )


def test_a_loading_worker_is_raised_with_its_progress_url(client: Any) -> None:
    with pytest.raises(WorkerLoading) as caught:
        events_of(client, "loading", prompt="a")
    assert caught.value.progress_url == "/p"


def test_an_error_has_the_pause_that_the_server_asks_for(client: Any) -> None:
    with pytest.raises(WorkerLoading) as caught:
        events_of(client, "loading", prompt="a")
    assert caught.value.retry_after_s == 17
    for method in (client.infer, client.infer_file):
        with pytest.raises(WorkerLoading) as caught:
            method("loading", prompt="a")
        assert caught.value.retry_after_s == 17
    with pytest.raises(WorkerLost) as lost:
        events_of(client, "proxy", prompt="a")
    assert lost.value.retry_after_s == WorkerLost.retry_after_s


@pytest.mark.parametrize(
    ("worker", "error", "message"),
    [
        ("proxy", WorkerLost, "responded with 502"),
        ("not-up", WorkerLost, "responded with 404"),
        ("strange", InternalError, "responded with 418"),
        ("unknown-code", InternalError, "news"),
    ],
)
def test_a_response_of_another_program_is_an_error_too(
    client: Any, worker: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        events_of(client, worker, prompt="a")


def test_not_being_ready_and_healthy_are_results(client: Any) -> None:
    readiness = client.ready()
    assert (readiness.ready, [worker.id for worker in readiness.workers]) == (False, ["llm"])
    assert readiness.workers[0].reason == "the model is being loaded"
    assert client.ready("never") == Readiness(ready=False, state="loading")
    assert client.health() == Health(status="unhealthy", vram_bytes=0)


def test_workers_are_listed(client: Any) -> None:
    llm, echo = client.workers()
    assert (llm.id, echo.id) == ("llm", "echo")
    assert (llm.type, llm.task, llm.outputs, llm.capacity) == ("llm", None, ("token",), 64)
    assert llm.replicas == (ReplicaInfo(phase="ready", healthy=True, devices=(0,), running=2, queued=1, capacity=64),)
    assert llm.limits == {"max_tokens": {"maximum": 2048}}


def test_a_result_of_another_server_is_an_internal_error(client: Any) -> None:
    with pytest.raises(InternalError, match="/workers/strange/v1/ready is not one of rbee-serve"):
        client.ready("strange")


def test_a_missing_and_a_wrong_token_have_different_codes(server: Server, client_type: Any) -> None:
    for token, code in [(None, "MISSING_API_KEY"), ("wrong", "INVALID_API_KEY")]:
        with client_type(server.url, token) as client, pytest.raises(Unauthorized) as caught:
            client.info("llm")
        assert caught.value.code == code
    with client_type(server.url, TOKEN) as client:
        info = client.info("llm")
        assert (info.devices, info.nodes) == (("GPU-0", "GPU-1"), ("10.0.0.1", "10.0.0.2"))
        assert (info.vram_bytes, info.vram_source) == (5, "driver")
        assert client.info("a b?").id == "a b?"
    with client_type(server.url, TOKEN.encode()) as client:
        assert client.info("llm").id == "llm"


def test_waiting_ends_when_the_server_is_ready(client: Any, server: Server) -> None:
    client.wait_until_ready(5)
    assert server.ready_requests == 3


def test_waiting_ends_with_the_reason_when_time_is_up(client: Any) -> None:
    with pytest.raises(WorkerLoading, match=r"not ready after 0 s: llm: the model is being loaded"):
        client.wait_until_ready(0)
    with pytest.raises(WorkerLoading, match=r"not ready after 0.1 s: it is loading"):
        client.wait_until_ready(0.1, "never")


def test_waiting_for_a_worker_that_does_not_exist_ends_at_once(client: Any) -> None:
    with pytest.raises(WorkerNotFound):
        client.wait_until_ready(5, "nobody")


def test_a_server_that_is_not_there_is_lost_and_can_be_waited_for(client_type: Any) -> None:
    with client_type("http://127.0.0.1:9") as client:
        with pytest.raises(WorkerLost, match="connection"):
            client.workers()
        with pytest.raises(WorkerLoading, match="connection"):
            client.wait_until_ready(0.1)


def test_a_silent_server_is_a_timeout(server: Server, client_type: Any) -> None:
    with client_type(server.url, timeout=0.2) as client, pytest.raises(InferenceTimeout):
        events_of(client, "silent", prompt="a")


def test_loading_progress_is_read_to_its_end(client: Any) -> None:
    with client.loading_progress("llm") as progress:
        assert list(progress) == [
            LoadProgress(stage="downloading", bytes_done=1, bytes_total=2),
            LoadProgress(stage="ready"),
        ]


def test_a_failed_load_and_no_load_are_raised(client: Any) -> None:
    with pytest.raises(WorkerUnhealthy, match="no memory"), client.loading_progress("failing") as progress:
        list(progress)
    with pytest.raises(WorkerUnhealthy, match="nothing is loading"), client.loading_progress("loaded") as progress:
        list(progress)


async def test_the_async_client_is_used_with_async_for(server: Server) -> None:
    async with AsyncClient(server.url) as client, client.stream("good", prompt="a") as events:
        assert [event async for event in events] == [STARTED, *TOKENS, END]
