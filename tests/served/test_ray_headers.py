"""Headers with which a client could have Ray end its request, through each frontend."""

from __future__ import annotations

import pytest

from rbee_serve.events import End, Error
from rbee_serve.grammar import check_stream
from tests.ingress.bad_json import INFER
from tests.served.frontends import Frontend, via

pytestmark = [pytest.mark.ray, via("own", "throughput", "default", "haproxy")]

BODY = {"prompt": "one two three", "tokens_per_sec": 10}


def test_the_time_limit_header_of_ray_does_not_truncate_a_stream(frontend: Frontend) -> None:
    response = frontend.client.post(INFER, json=BODY, headers={"x-request-timeout-seconds": "0.1"})
    assert isinstance(check_stream(response.content)[-1], End)


def test_our_time_limit_header_ends_a_stream_with_an_error(frontend: Frontend) -> None:
    response = frontend.client.post(INFER, json=BODY, headers={"X-Request-Timeout-Ms": "150"})
    last = check_stream(response.content)[-1]
    assert isinstance(last, Error)
    assert last.code == "INFERENCE_TIMEOUT"
