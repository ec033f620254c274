"""Several keys: what each may use, how much of it, and how its token is replaced."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncGenerator, Iterator, MutableMapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

from deployments.multimodal.multimodal_request import MultimodalRequest
from deployments.multimodal.multimodal_worker import SPEC
from rbee_serve.config import WorkerConfig, parse_application
from rbee_serve.config.auth import AuthConfig
from rbee_serve.errors import ConfigurationError, WorkerLoading, WorkerNotFound
from rbee_serve.ingress.app import IngressApp
from rbee_serve.ingress.keys import KeyRing
from rbee_serve.ingress.router import Router
from rbee_serve.ingress.services import Worker
from rbee_serve.state import LoadProgress, ReplicaState, WorkerState
from rbee_serve.transport.request_messages import ResponseChunk
from tests.ingress.application import configured, keys_in, services_of, serving
from tests.ingress.deployment_handle import Handle, soon
from tests.raw_http import RawResponse, exchange, head, whole

WORKERS = [{"id": f"echo-{n}", "type": "echo"} for n in range(3)]
PROMPT = b'{"prompt":"a b c"}'


def of(name: str) -> bytes:
    return f"Authorization: Bearer {name}-token".encode()


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """`one` may use echo-0, `two` echo-1 and echo-2, `all` everything; `single` is the key without a name."""
    auth = keys_in(tmp_path, one={"workers": ["echo-0"]}, two={"workers": ["echo-1", "echo-2"]}, all={})
    (tmp_path / "single").write_text("single-token")
    app = configured({"workers": WORKERS, "auth": {**auth, "token_file": tmp_path / "single"}})
    with serving(app, "httptools") as url:
        yield url


def ids(response: RawResponse) -> list[str]:
    return [worker["id"] for worker in json.loads(response.body)["workers"]]


def test_a_key_sees_its_own_workers(url: str) -> None:
    expected = {"one": ["echo-0"], "two": ["echo-1", "echo-2"], "all": ["echo-0", "echo-1", "echo-2"]}
    for name, workers in {**expected, "single": expected["all"]}.items():
        assert ids(exchange(url, head("/v1/workers", of(name), method=b"GET"))) == workers
        ready = exchange(url, head("/v1/ready", of(name), method=b"GET"))
        assert ids(ready) == workers
        assert ready.status == (200 if name == "one" else 503)  # only echo-0 is ready


def test_another_worker_does_not_exist_for_a_key(url: str) -> None:
    for path in ("info", "v1/ready", "v1/loading/progress", "v1/inference"):
        responses = []
        for worker_id in ("echo-1", "nobody"):
            target = f"/workers/{worker_id}/{path}"
            request = (
                whole(target, PROMPT, of("one")) if "inference" in path else head(target, of("one"), method=b"GET")
            )
            response = exchange(url, request)
            assert response.status == 404
            responses.append(response.body)
        assert json.loads(responses[0])["code"] == "WORKER_NOT_FOUND"
        assert responses[0] == responses[1]


def test_at_the_root_a_key_finds_its_own_workers(url: str) -> None:
    for name, body, status, code in [
        ("one", {"worker": "echo-1"}, 404, "WORKER_NOT_FOUND"),
        ("one", {"worker": "echo-0", "x": 1}, 400, "INVALID_REQUEST"),
        ("one", {"model": "echo", "x": 1}, 400, "INVALID_REQUEST"),
        ("two", {"model": "echo", "x": 1}, 503, "WORKER_LOADING"),  # echo-0, which is ready, is not its own
        ("two", {"worker": "echo-0", "model": "echo"}, 404, "WORKER_NOT_FOUND"),
        ("all", {"worker": "echo-1"}, 503, "WORKER_LOADING"),
    ]:
        response = exchange(url, whole("/v1/inference", json.dumps(body).encode(), of(name)))
        assert (response.status, json.loads(response.body)["code"]) == (status, code), (name, body)


def test_health_is_open_whatever_the_key(url: str) -> None:
    for lines in ([], [of("one")], [b"Authorization: Bearer wrong"]):
        for target in ("/health", "/workers/echo-1/health", "/workers/echo-0/health"):
            assert exchange(url, head(target, *lines, method=b"GET")).status == 200


def test_a_helper_worker_is_used_by_a_key_that_may_not_address_it() -> None:
    multimodal = WorkerConfig(id="multimodal-0", type="multimodal", uses={"audio": "speech-0"})
    workers = {
        "multimodal-0": Worker(multimodal, SPEC, MultimodalRequest),
        "speech-0": Worker(WorkerConfig(id="speech-0", type="audio"), SPEC, MultimodalRequest),
    }
    services = services_of(workers, "multimodal-0").restricted_to(frozenset({"multimodal-0"}))
    with pytest.raises(WorkerNotFound):
        services.worker("speech-0")
    assert services.find("speech-0", None) is None
    with pytest.raises(WorkerLoading, match="worker speech-0 is still loading"):
        services.require_ready(services.worker("multimodal-0"), {"audio"})


def test_the_holder_of_a_gpu_is_shown_to_keys_that_may_use_it() -> None:
    workers = {f"echo-{n}": Worker(WorkerConfig(id=f"echo-{n}", type="echo"), SPEC, MultimodalRequest) for n in (0, 1)}
    services = services_of(workers, "echo-0")
    load = LoadProgress(stage="waiting_for_gpu", held_by="echo-1")
    replica = ReplicaState(worker_id="echo-0", replica_id="r", boot_id="b", phase="loading", backend="cuda", load=load)
    state = WorkerState(worker_id="echo-0", desired_replicas=1, replicas=(replica,))
    assert services.load_progress(state) == load
    assert services.restricted_to(frozenset({"echo-0", "echo-1"})).load_progress(state) == load
    assert services.restricted_to(frozenset({"echo-0"})).load_progress(state) == LoadProgress(stage="waiting_for_gpu")


def test_the_log_has_the_name_of_the_key(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rbee_serve")
    exchange(url, head("/v1/workers", of("one"), method=b"GET"))
    exchange(url, head("/v1/workers", of("single"), method=b"GET"))
    exchange(url, head("/v1/workers", method=b"GET"))
    lines = [record.getMessage() for record in caplog.records if record.name == "rbee_serve.access"]
    assert [line.partition("s ")[2] for line in lines[:2]] == ["key=one", "key=token_file"]
    assert "key" not in lines[2]
    assert "-token" not in caplog.text


def faults(auth: dict[str, Any]) -> str:
    config = parse_application({"workers": WORKERS, "auth": auth})
    return "\n".join(config.auth.faults({worker.id for worker in config.workers}))


def test_a_fault_of_the_keys_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text(" \nx\n")
    (tmp_path / "long").write_bytes(b"x" * 100_000)
    (tmp_path / "same").write_text("one-token")
    good = keys_in(tmp_path, one={})["keys"]
    for more, expected in [
        ({"name": "b", "token_file": tmp_path / "none"}, r"keys\[1\].token_file: .*/none cannot be read: No such file"),
        (
            {"name": "b", "token_file": tmp_path / "empty"},
            r"keys\[1\].token_file: the first line of .* is empty; write",
        ),
        ({"name": "b", "token_file": tmp_path / "long"}, r"keys\[1\].token_file: the first line of .* is longer than"),
        ({"name": "b", "token_file": "a\0b"}, r"keys\[1\].token_file: .* is not the path of a file"),
        ({"name": "b", "token_file": tmp_path}, r"keys\[1\].token_file: .* cannot be read: Is a directory"),
        (
            {"name": "b", "token_file": tmp_path / "same"},
            r"keys\[1\].token_file: .* has the token of the key one; give",
        ),
    ]:
        assert pytest.raises(AssertionError, match="^auth." + expected).matches(
            AssertionError(faults({"keys": [*good, more]}))
        )
        with pytest.raises(ConfigurationError):
            KeyRing(AuthConfig.model_validate({"keys": [*good, more]}))
    (tmp_path / "two").write_text("two-token")
    more = {"name": "two", "token_file": tmp_path / "two", "workers": ["echo-0", "echo-9"]}
    assert faults({"keys": [*good, more]}) == "auth.keys[1].workers[1]: no worker has the id echo-9"
    assert not faults({"keys": good, "token_file": tmp_path / "two"})
    assert "has the token of the key token_file" in faults({"keys": good, "token_file": tmp_path / "one"})


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([{"name": "a", "token_file": "x"}, {"name": "a", "token_file": "y"}], "the name a is given more than once"),
        ([{"name": "supervisor", "token_file": "x"}], "the name supervisor is taken"),
        ([{"name": "token_file", "token_file": "x"}], "the name token_file is taken"),
        ([{"name": "a b", "token_file": "x"}], "name"),
        ([{"name": "a"}], r"auth.keys\[0\].token_file: is missing"),
        ([{"name": "a", "token_file": "x", "workers": []}], "workers"),
        ([{"name": "a", "token_file": "x", "max_ongoing_requests": 0}], "max_ongoing_requests"),
        ([{"name": "a", "token_file": "x", "max_requests_per_minute": -1}], "max_requests_per_minute"),
        ([{"name": "a", "token_file": "x", "max_request_per_minute": 1}], "did you mean max_requests_per_minute"),
    ],
)
def test_a_key_that_is_malformed_is_refused(keys: list[dict[str, Any]], expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        parse_application({"workers": WORKERS, "auth": {"keys": keys}})


def test_the_supervisor_has_a_key_of_its_own(tmp_path: Path) -> None:
    sha256 = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"  # of "foo"
    auth = keys_in(tmp_path, one={"workers": ["echo-0"]})
    with serving(configured({"workers": WORKERS, "auth": {**auth, "supervisor_sha256": sha256}}), "httptools") as url:
        response = exchange(url, head("/v1/workers", b"Authorization: Bearer foo", method=b"GET"))
        assert ids(response) == ["echo-0", "echo-1", "echo-2"]
        response = exchange(url, head("/v1/workers", b"Authorization: Bearer " + sha256.encode(), method=b"GET"))
        assert response.status == 401


async def words(fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
    """A stream that lasts, or fails, as its request has it."""
    if fields["prompt"] == "fail":
        raise RuntimeError("a fault")
    for _ in range(random.randrange(1, 20)):
        yield b"data: {}\n\n", False
        await asyncio.sleep(random.random() / 100)
    yield b"data: [DONE]\n\n", True


def scope_of(target: str, *headers: tuple[bytes, bytes]) -> MutableMapping[str, Any]:
    return {
        "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": target, "root_path": "",
        "query_string": b"", "headers": [(b"host", b"localhost"), *headers],
    }  # fmt: skip


async def leave_at_random(app: Starlette, target: str, body: bytes, chance: random.Random) -> int:
    """A client that disconnects, or whose task is cancelled, at some moment from the request line to the last byte."""
    gone = asyncio.Event()
    status = 0
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> MutableMapping[str, Any]:
        if messages and not (gone.is_set()):
            await asyncio.sleep(chance.choice([0, 0, 0.002]))
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    call = asyncio.create_task(app(scope_of(target, (b"authorization", b"Bearer one-token")), receive, send))
    await asyncio.sleep(chance.choice([0, 0.001, 0.005, 0.02, 0.05]) * chance.random())
    gone.set()
    if chance.random() < 0.3:
        call.cancel()
    await asyncio.wait([call])
    return status


async def test_after_a_thousand_random_disconnects_a_key_has_all_its_slots(tmp_path: Path) -> None:
    handle = Handle(words)
    chance = random.Random(11)
    auth = keys_in(tmp_path, one={"max_ongoing_requests": 20, "workers": ["echo-0"]})
    app = configured({"workers": WORKERS[:1], "auth": auth}, Router({"echo-0": handle}, 5.0))
    statuses: list[int] = []

    async def client(count: int) -> None:
        for _ in range(count):
            target, body = chance.choice(
                [
                    ("/workers/echo-0/v1/inference", PROMPT),
                    ("/v1/inference", b'{"worker":"echo-0","prompt":"a"}'),
                    ("/v1/inference", b'{"worker":"nobody"}'),
                    ("/workers/echo-0/v1/inference", b'{"prompt":"fail"}'),
                    ("/workers/echo-0/v1/inference", b"{"),
                ]
            )
            statuses.append(await leave_at_random(app, target, body, chance))

    await asyncio.gather(*(client(25) for _ in range(40)))
    assert len(statuses) == 1000
    assert {0, 200, 400, 404, 429, 500} == set(statuses)  # 500: a fault of the replica
    assert isinstance(app, IngressApp)
    assert app.keys is not None
    key = app.keys.find(b"one-token")
    assert key is not None
    limit = key.limit
    assert limit.ongoing == 0
    assert limit.admitted + limit.refused <= 1000
    with ExitStack() as all_slots:
        for _ in range(20):
            all_slots.enter_context(limit)
    await soon(lambda: not handle.running)
    await handle.close()
