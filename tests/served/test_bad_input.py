"""Bad input over a real socket, and what must hold after each piece of it: nobody else notices."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any, get_args

import httpx
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.echo import EchoRequest, Failure
from tests.conftest import APPLICATION, Served
from tests.raw_http import Answer, chunk, connected, exchange, head, whole
from tests.served.bad_http import ACCEPTED, BY_RAY, GARBAGE_IDS, HTTP, MIB, Case
from tests.served.bad_json import BOTH_ROUTES, CONTENT, GOOD, INFER, ODD_BUT_GOOD, ROOT, ROOT_NAMES, at_the_root
from tests.served.waiting import eventually

pytestmark = pytest.mark.ray

INTERNAL = re.compile(
    rb"0x[0-9a-f]{4}|Traceback|File \"|/home|/root|/tmp|/usr|\.py\b|site-packages|\bray\b|pydantic", re.I
)
NEIGHBOUR = "what-somebody-else-has-asked"


class Ward:
    """The processes behind the socket, which no request may disturb."""

    def __init__(self, served: Served) -> None:
        self._url = served.base("echo-0") + ROOT
        self._client = httpx.Client(timeout=10)
        self._snapshot = served.handle("hub").snapshot
        eventually(lambda: self._good_request().status_code == 200, 60)
        self._boot = self._boots()
        self._processes = [
            *_processes("ProxyActor"),
            *(p for n in ("ingress", "echo-0") for p in _processes(f"ServeReplica:{APPLICATION}:{n}")),
        ]
        assert len(self._processes) == 3, self._processes
        self._memory = self._used()

    def check(self) -> None:
        """What holds after every request."""
        began = time.monotonic()
        good = self._good_request()
        assert (good.status_code, good.json()["text"]) == (200, NEIGHBOUR)
        assert time.monotonic() - began < 1
        eventually(lambda: self._working() == 0, 2)
        assert self._boots() == self._boot
        assert all(process.is_running() for process in self._processes)
        used = self._used()
        assert all(now - before < 32 * MIB for now, before in zip(used, self._memory, strict=True)), (
            self._memory,
            used,
        )
        self._memory = used

    def close(self) -> None:
        self._client.close()

    def _good_request(self) -> httpx.Response:
        return self._client.post(self._url, json={"prompt": NEIGHBOUR, "stream": False})

    def _replicas(self) -> Any:
        return self._snapshot.remote().result(timeout_s=5).worker("echo-0").replicas

    def _working(self) -> int:
        return sum(replica.running + replica.queued for replica in self._replicas())

    def _boots(self) -> list[str]:
        return [replica.boot_id for replica in self._replicas()]

    def _used(self) -> list[int]:
        return [process.memory_info().rss for process in self._processes]


def _processes(name: str) -> list[psutil.Process]:
    """The processes of this test run's own Ray that have that name."""
    return [p for p in psutil.Process().children(recursive=True) if f"ray::{name}" in " ".join(p.cmdline())]


@pytest.fixture(scope="module")
def ward(served: Served) -> Iterator[Ward]:
    ward = Ward(served)
    yield ward
    ward.close()


def check_refusal(answer: Answer, status: int, code: str) -> Any:
    """The answer tells what is expected, in our form, and nothing that is nobody's business."""
    assert answer.status == status, answer.body[:300]
    assert not INTERNAL.search(answer.raw), answer.raw
    assert NEIGHBOUR.encode() not in answer.raw
    if code == BY_RAY:
        assert "x-correlation-id" not in answer.headers
        return None
    assert re.fullmatch(r"corr-[0-9a-f]{16}", answer.headers["x-correlation-id"])
    if code == ACCEPTED or not answer.body:  # the answer to HEAD
        return None
    assert CONTENT.encode() not in answer.raw
    body = json.loads(answer.body)
    assert (body["code"], type(body["message"]), type(body["retriable"])) == (code, str, bool)
    assert len(answer.body) < 20_000
    return body


@pytest.mark.parametrize("case", HTTP, ids=str)
def test_bad_http_harms_nobody(served: Served, ward: Ward, case: Case) -> None:
    check_refusal(exchange(served.url, case.request()), case.status, case.code)
    ward.check()


@pytest.mark.parametrize("given_id", GARBAGE_IDS, ids=lambda value: repr(value[:20]))
def test_a_garbage_correlation_id_is_replaced(served: Served, ward: Ward, given_id: bytes) -> None:
    answer = exchange(served.url, whole(INFER, GOOD, b"X-Correlation-ID: " + given_id))
    check_refusal(answer, 200, ACCEPTED)
    ward.check()


@pytest.mark.parametrize(
    ("target", "body", "field"), [case[1:] for case in BOTH_ROUTES], ids=[case[0] for case in BOTH_ROUTES]
)
def test_bad_json_is_refused_by_name(served: Served, ward: Ward, target: str, body: bytes, field: str) -> None:
    answer = check_refusal(exchange(served.url, whole(target, body)), 400, "INVALID_REQUEST")
    assert [error["field"] for error in answer["errors"]] == [field]
    ward.check()


@pytest.mark.parametrize("target", [INFER, ROOT], ids=["worker", "root"])
@pytest.mark.parametrize("body", [case[1] for case in ODD_BUT_GOOD], ids=[case[0] for case in ODD_BUT_GOOD])
def test_odd_json_is_answered(served: Served, ward: Ward, target: str, body: bytes) -> None:
    sent = body if target == INFER else at_the_root(body)
    check_refusal(exchange(served.url, whole(target, sent)), 200, ACCEPTED)
    ward.check()


@pytest.mark.parametrize(
    ("body", "status", "code"), [case[1:] for case in ROOT_NAMES], ids=[case[0] for case in ROOT_NAMES]
)
def test_a_worker_that_is_misnamed_in_the_body(served: Served, ward: Ward, body: bytes, status: int, code: str) -> None:
    check_refusal(exchange(served.url, whole(ROOT, body)), status, code)
    ward.check()


@pytest.mark.parametrize(
    "request_",
    [
        head(INFER, b"Content-Length: 1000") + b"{",
        head(INFER, b"Transfer-Encoding: chunked") + chunk(b"{"),
        head(INFER)[:40],
    ],
    ids=["length", "chunks", "head"],
)
def test_a_client_that_leaves_within_its_request(served: Served, ward: Ward, request_: bytes) -> None:
    with connected(served.url) as connection:
        connection.sendall(request_)
        time.sleep(0.1)
    ward.check()


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from([*EchoRequest.model_fields, "worker", "model"]) | st.text(max_size=12)
# A failure that is asked for is not bad input.
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=8).filter(lambda fields: fields.get("fail") not in get_args(Failure))


def test_no_json_object_makes_the_server_fail(served: Served, ward: Ward) -> None:
    until = time.monotonic() + 8

    @settings(max_examples=400, deadline=None, database=None)
    @given(OBJECTS, st.booleans())
    def check(fields: dict[str, Any], prompted: bool) -> None:
        if time.monotonic() > until:
            return
        fields = {**fields, "prompt": CONTENT} if prompted else fields
        body = json.dumps({**fields, "stream": False}).encode()
        answer = exchange(served.url, whole(INFER, body, b"X-Request-Timeout-Ms: 100"))
        assert answer.status in (200, 400, 408), (answer, body)
        assert not INTERNAL.search(answer.headers.as_bytes())

    check()
    ward.check()
