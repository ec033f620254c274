"""Generated requests: none makes the server fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.echo import EchoRequest
from deployments.echo_failures import Failure
from tests.ingress.bad_json import CONTENT, INFER, WORKER
from tests.ingress.refusals import INTERNAL
from tests.raw_http import head, whole
from tests.served.frontends import Frontend, via
from tests.served.health_probe import HealthProbe

pytestmark = [pytest.mark.ray, via("own", "haproxy")]

T = TypeVar("T")

TIMEOUT = b"X-Request-Timeout-Ms: 100"

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from([*EchoRequest.model_fields, "worker", "model"]) | st.text(max_size=12)
# A requested failure is not bad input.
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=8).filter(lambda fields: fields.get("fail") not in get_args(Failure))

VISIBLE = st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters="\x7f")
SEGMENTS = st.sampled_from(
    ["workers", WORKER, "nobody", "v1", "inference", "ready", "loading", "progress", "health", "info", "..", "%2e", ""]
) | st.text(VISIBLE, max_size=8)
ROUTES = st.sampled_from(
    [
        "/health",
        "/v1/ready",
        "/v1/workers",
        "/v1/inference",
        *(
            f"/workers/{WORKER}/{path}"
            for path in ("health", "info", "v1/ready", "v1/loading/progress", "v1/inference")
        ),
    ]
)
PATHS = ROUTES | st.builds(lambda segments: "/" + "/".join(segments), st.lists(SEGMENTS, max_size=6))
METHODS = st.sampled_from("GET POST HEAD PUT PATCH DELETE OPTIONS TRACE".split()) | st.text("ABCXYZ-", min_size=1)
# Headers that frame the request are in `tests/ingress/bad_http.py`.
KNOWN_HEADERS = st.sampled_from(
    [
        "Accept",
        "Content-Encoding",
        "Content-Type",
        "Cookie",
        "Range",
        "X-Correlation-ID",
        "X-Forwarded-For",
        "X-Request-Timeout-Ms",
        "serve_multiplexed_model_id",
        "traceparent",
        "x-request-disconnect-disabled",
        "x-request-id",
        "x-request-timeout-seconds",
        "x-session-id",
    ]
)
LINES = st.tuples(
    KNOWN_HEADERS | st.from_regex(r"X-[A-Za-z0-9_.-]{1,12}", fullmatch=True), st.text(VISIBLE, max_size=20)
)
BODIES = st.binary(max_size=200) | st.builds(lambda fields: json.dumps(fields).encode(), OBJECTS)


REQUESTS = st.tuples(METHODS, PATHS, st.lists(LINES, max_size=4), BODIES)


EXAMPLES = 300


def for_each(examples: st.SearchStrategy[T], check: Callable[[T], None]) -> None:
    """Check the same `EXAMPLES` examples in every run. A failure prints the blob that reproduces it."""

    @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, print_blob=True)
    @given(examples)
    def one(example: T) -> None:
        check(example)

    one()


def test_no_request_makes_the_server_fail(frontend: Frontend, probe: HealthProbe) -> None:
    def check(request: tuple[str, str, list[tuple[str, str]], bytes]) -> None:
        method, path, lines, body = request
        given_headers = [f"{name}: {value}".encode("latin-1") for name, value in lines]
        headers = [TIMEOUT, b"Content-Length: %d" % len(body), *given_headers]
        response = frontend.exchange(head(path.encode("latin-1"), *headers, method=method.encode()) + body)
        # 503 is ours where a worker is not ready.
        assert response.status < 500 or (response.status == 503 and "x-correlation-id" in response.headers), response
        assert not INTERNAL.search(response.raw), response

    for_each(REQUESTS, check)
    probe.check()


def test_no_json_object_makes_the_server_fail(frontend: Frontend, probe: HealthProbe) -> None:
    def check(fields: dict[str, Any]) -> None:
        body = json.dumps({**fields, "stream": False}).encode()
        response = frontend.exchange(whole(INFER, body, TIMEOUT))
        assert response.status in (200, 400, 408), (response, body)
        assert not INTERNAL.search(response.headers.as_bytes())

    for_each(OBJECTS | OBJECTS.map(lambda fields: {**fields, "prompt": CONTENT}), check)
    probe.check()
