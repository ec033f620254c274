"""Bad JSON and bad media types against the ingress application, without Ray."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ingress.application import application, serving
from tests.ingress.bad_http import ACCEPTED, APPLICATION, Case
from tests.ingress.bad_json import BOTH_ROUTES, ROOT, ROOT_NAMES, WORKER
from tests.ingress.refusals import check_refusal
from tests.raw_http import exchange, whole


def to_this_worker(data: bytes) -> bytes:
    """The path or the body, with the worker of this application in place of the one in the tables."""
    return data.replace(WORKER.encode(), b"echo-0")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(application(None), "httptools") as url:
        yield url


@pytest.mark.parametrize(
    ("target", "body", "field"), [case[1:] for case in BOTH_ROUTES], ids=[case[0] for case in BOTH_ROUTES]
)
def test_bad_json_is_refused_with_the_name_of_the_field(url: str, target: str, body: bytes, field: str) -> None:
    response = exchange(url, whole(to_this_worker(target.encode()), to_this_worker(body)))
    refusal = check_refusal(response, 400, "INVALID_REQUEST")
    assert [error["field"] for error in refusal["errors"]] == [field]


@pytest.mark.parametrize(
    ("body", "status", "code"), [case[1:] for case in ROOT_NAMES], ids=[case[0] for case in ROOT_NAMES]
)
def test_a_wrong_worker_name_in_the_body_is_refused(url: str, body: bytes, status: int, code: str) -> None:
    check_refusal(exchange(url, whole(ROOT, to_this_worker(body))), status, code)


@pytest.mark.parametrize("case", [case for case in APPLICATION if case.usual[1] != ACCEPTED], ids=str)
def test_a_bad_media_type_or_timeout_is_refused(url: str, case: Case) -> None:
    request = case.request()
    assert isinstance(request, bytes)
    check_refusal(exchange(url, to_this_worker(request)), *case.usual)
