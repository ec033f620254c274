"""Bad input over a real socket, and what must hold after each piece of it: nobody else notices."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from tests.raw_http import Answer, chunk, connected, head, whole
from tests.served.bad_http import ACCEPTED, BY_PROXY, GARBAGE_IDS, HTTP, Case
from tests.served.bad_json import BOTH_ROUTES, CONTENT, GOOD, INFER, ODD_BUT_GOOD, ROOT, ROOT_NAMES, at_the_root
from tests.served.frontends import Frontend, through
from tests.served.health_probe import INTERNAL, NEIGHBOUR, HealthProbe

pytestmark = [pytest.mark.ray, through("own", "throughput", "haproxy")]


def check_refusal(answer: Answer, status: int, code: str) -> Any:
    """The answer tells what is expected, in our form, and nothing that is nobody's business."""
    assert answer.status == status, answer.body[:300]
    assert not INTERNAL.search(answer.raw), answer.raw
    assert NEIGHBOUR.encode() not in answer.raw
    if code == BY_PROXY:
        assert "x-correlation-id" not in answer.headers
        return None
    assert re.fullmatch(r"corr-[0-9a-f]{16}", answer.headers["x-correlation-id"])
    if code == ACCEPTED or not answer.body:  # the answer to HEAD
        return None
    assert CONTENT.encode() not in answer.raw
    body = json.loads(answer.body)
    if status == 401:
        assert body["error"]["code"] == code
        return None
    assert (body["code"], type(body["message"]), type(body["retriable"])) == (code, str, bool)
    assert len(answer.body) < 20_000
    return body


@pytest.mark.parametrize("case", HTTP, ids=str)
def test_bad_http_harms_nobody(door: Frontend, ward: HealthProbe, case: Case) -> None:
    check_refusal(door.exchange(case.request()), *case.expected(door.mode))
    ward.check()


@pytest.mark.parametrize("given_id", GARBAGE_IDS, ids=lambda value: repr(value[:20]))
def test_a_garbage_correlation_id_is_replaced(door: Frontend, ward: HealthProbe, given_id: bytes) -> None:
    answer = door.exchange(whole(INFER, GOOD, b"X-Correlation-ID: " + given_id))
    check_refusal(answer, 200, ACCEPTED)
    ward.check()


@pytest.mark.parametrize(
    ("target", "body", "field"), [case[1:] for case in BOTH_ROUTES], ids=[case[0] for case in BOTH_ROUTES]
)
def test_bad_json_is_refused_by_name(door: Frontend, ward: HealthProbe, target: str, body: bytes, field: str) -> None:
    answer = check_refusal(door.exchange(whole(target, body)), 400, "INVALID_REQUEST")
    assert [error["field"] for error in answer["errors"]] == [field]
    ward.check()


@pytest.mark.parametrize("target", [INFER, ROOT], ids=["worker", "root"])
@pytest.mark.parametrize("body", [case[1] for case in ODD_BUT_GOOD], ids=[case[0] for case in ODD_BUT_GOOD])
def test_odd_json_is_answered(door: Frontend, ward: HealthProbe, target: str, body: bytes) -> None:
    sent = body if target == INFER else at_the_root(body)
    check_refusal(door.exchange(whole(target, sent)), 200, ACCEPTED)
    ward.check()


@pytest.mark.parametrize(
    ("body", "status", "code"), [case[1:] for case in ROOT_NAMES], ids=[case[0] for case in ROOT_NAMES]
)
def test_a_worker_that_is_misnamed_in_the_body(
    door: Frontend, ward: HealthProbe, body: bytes, status: int, code: str
) -> None:
    check_refusal(door.exchange(whole(ROOT, body)), status, code)
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
def test_a_client_that_leaves_within_its_request(door: Frontend, ward: HealthProbe, request_: bytes) -> None:
    with connected(door.url) as connection:
        connection.sendall(door.admitted(request_))
        time.sleep(0.1)
    ward.check()
