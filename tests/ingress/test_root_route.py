"""`POST /v1/inference`: the worker is named in the body, which may be hostile."""

from __future__ import annotations

import json
import time

import pytest

from tests.ingress.application import application, serving
from tests.raw_http import exchange, head, whole


@pytest.mark.parametrize(
    "values", [b"[]," * 8_000_000 + b"0", b'{"a":0},' * 3_000_000 + b"0"], ids=["arrays", "objects"]
)
def test_millions_of_values_are_refused_before_they_are_parsed(values: bytes) -> None:
    body = b'{"worker":"nobody","x":[' + values + b"]}"
    with serving(application(None), "httptools") as url:
        began = time.monotonic()
        answer = exchange(url, whole("/v1/inference", body))
        seconds = time.monotonic() - began
    assert answer.status == 400
    assert json.loads(answer.body)["errors"][0]["constraint"] == "values <= 100000"
    assert seconds < 20  # parsing them would take minutes


def test_a_wrong_method_is_answered_with_the_right_one() -> None:
    with serving(application(None), "httptools") as url:
        answer = exchange(url, whole("/v1/inference", b"{}").replace(b"POST ", b"PUT ", 1))
    assert answer.status == 405
    assert json.loads(answer.body)["message"] == "PUT is not allowed here; use POST"


def test_a_slash_at_the_end_of_a_path_changes_nothing() -> None:
    with serving(application(None), "httptools") as url:
        for path in ("/v1/inference", "/workers/echo-0/v1/inference", "/v1/workers", "/nothing"):
            plain, slashed = (exchange(url, whole(target, b"{}")) for target in (path, f"{path}/"))
            assert (slashed.status, slashed.body) == (plain.status, plain.body)
        assert exchange(url, head("/v1/workers/", method=b"GET")).status == 200
    with serving(application(b"token"), "httptools") as url:
        for path in ("/v1/workers/", "/health/", "/workers/echo-0/health/"):
            assert exchange(url, head(path, method=b"GET")).status == 401
