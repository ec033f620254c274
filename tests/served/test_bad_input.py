"""Bad input over a real socket: it is refused, and no other client notices.

The bodies and headers that only the ingress application looks at are in `tests/ingress/test_bad_requests.py`; here a
few of them are run through each frontend.
"""

from __future__ import annotations

import re
import time

import pytest

from tests.ingress.bad_http import ACCEPTED, APPLICATION, BY_SERVER, GARBAGE_IDS, SERVER, Case
from tests.ingress.bad_json import BOTH_ROUTES, GOOD, INFER, ROOT, ROOT_NAMES, UNUSUAL_BUT_VALID, at_the_root
from tests.ingress.refusals import INTERNAL, check_refusal
from tests.raw_http import RawResponse, chunk, connected, head, whole
from tests.served.frontends import Frontend, via
from tests.served.health_probe import NEIGHBOUR, HealthProbe

pytestmark = pytest.mark.ray

all_frontends = via("own", "throughput", "haproxy")


def check(response: RawResponse, status: int, code: str) -> None:
    """The response has the expected status, and the code and the form of a refusal where it is one of ours."""
    assert NEIGHBOUR.encode() not in response.raw
    if code not in (ACCEPTED, BY_SERVER):
        check_refusal(response, status, code)
        return
    assert response.status == status, response.body[:300]
    assert not INTERNAL.search(response.raw), response.raw
    if code == ACCEPTED:
        assert re.fullmatch(r"corr-[0-9a-f]{16}", response.headers["x-correlation-id"])
    else:
        assert "x-correlation-id" not in response.headers


@all_frontends
@pytest.mark.parametrize("case", [*SERVER, *APPLICATION[:3]], ids=str)
def test_bad_http_is_harmless(frontend: Frontend, probe: HealthProbe, case: Case) -> None:
    check(frontend.exchange(case.request()), *case.expected(frontend.mode))
    probe.check()


@via("own")
@pytest.mark.parametrize("case", APPLICATION[3:], ids=str)
def test_bad_media_types_and_timeouts_are_harmless(frontend: Frontend, probe: HealthProbe, case: Case) -> None:
    check(frontend.exchange(case.request()), *case.expected(frontend.mode))
    probe.check()


@all_frontends
@pytest.mark.parametrize("given_id", GARBAGE_IDS, ids=lambda value: repr(value[:20]))
def test_a_garbage_correlation_id_is_replaced(frontend: Frontend, probe: HealthProbe, given_id: bytes) -> None:
    check(frontend.exchange(whole(INFER, GOOD, b"X-Correlation-ID: " + given_id)), 200, ACCEPTED)
    probe.check()


FEW = [
    case
    for case in BOTH_ROUTES
    if case[0] in ("truncated, worker's route", "an unknown field, root route", "a prompt of 900 kB, worker's route")
]


@all_frontends
@pytest.mark.parametrize(("target", "body", "field"), [case[1:] for case in FEW], ids=[case[0] for case in FEW])
def test_bad_json_is_refused_with_the_name_of_the_field(
    frontend: Frontend, probe: HealthProbe, target: str, body: bytes, field: str
) -> None:
    refusal = check_refusal(frontend.exchange(whole(target, body)), 400, "INVALID_REQUEST")
    assert [error["field"] for error in refusal["errors"]] == [field]
    probe.check()


@via("own")
@pytest.mark.parametrize("target", [INFER, ROOT], ids=["worker", "root"])
@pytest.mark.parametrize("body", [case[1] for case in UNUSUAL_BUT_VALID], ids=[case[0] for case in UNUSUAL_BUT_VALID])
def test_unusual_json_is_accepted(frontend: Frontend, probe: HealthProbe, target: str, body: bytes) -> None:
    sent = body if target == INFER else at_the_root(body)
    check(frontend.exchange(whole(target, sent)), 200, ACCEPTED)
    probe.check()


@all_frontends
def test_an_unknown_worker_in_the_body_is_refused(frontend: Frontend, probe: HealthProbe) -> None:
    [(_, body, status, code)] = [case for case in ROOT_NAMES if case[0] == "an unknown worker"]
    check_refusal(frontend.exchange(whole(ROOT, body)), status, code)
    probe.check()


@all_frontends
@pytest.mark.parametrize(
    "request_",
    [
        head(INFER, b"Content-Length: 1000") + b"{",
        head(INFER, b"Transfer-Encoding: chunked") + chunk(b"{"),
        head(INFER)[:40],
    ],
    ids=["length", "chunks", "head"],
)
def test_a_disconnect_within_the_request_is_harmless(frontend: Frontend, probe: HealthProbe, request_: bytes) -> None:
    with connected(frontend.url) as connection:
        connection.sendall(frontend.with_token(request_))
        time.sleep(0.1)
    probe.check()
