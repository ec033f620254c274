"""`POST /v1/inference`: the worker is named in the body, which may be hostile."""

from __future__ import annotations

import json
import time

import pytest

from tests.ingress.application import application, serving
from tests.raw_http import exchange, whole


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
