"""Headers with which a client could have Ray end its request, on the way through each door."""

from __future__ import annotations

import pytest

from rbee_serve.events import End, Error
from rbee_serve.grammar import check_stream
from tests.served.bad_json import INFER
from tests.served.frontends import Frontend, through

pytestmark = [pytest.mark.ray, through("own", "throughput", "default", "haproxy")]


def test_rays_own_time_limit_cuts_no_stream(door: Frontend) -> None:
    body = {"prompt": "one two three", "tokens_per_sec": 10}
    answer = door.client.post(INFER, json=body, headers={"x-request-timeout-seconds": "0.1"})
    assert isinstance(check_stream(answer.content)[-1], End)


def test_our_time_limit_ends_a_stream_with_an_error(door: Frontend) -> None:
    body = {"prompt": "one two three", "tokens_per_sec": 10}
    answer = door.client.post(INFER, json=body, headers={"X-Request-Timeout-Ms": "150"})
    last = check_stream(answer.content)[-1]
    assert isinstance(last, Error)
    assert last.code == "INFERENCE_TIMEOUT"
