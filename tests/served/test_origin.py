"""A web page and the server, through each frontend. Requests of foreign pages are in `tests/ingress/bad_http.py`."""

from __future__ import annotations

import pytest

from rbee_serve.sse import DONE
from tests.ingress.bad_json import INFER
from tests.raw_http import exchange, head
from tests.served.frontends import Frontend, via

pytestmark = pytest.mark.ray

all_frontends = via("own", "throughput", "default", "haproxy")

PAGE = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}


@all_frontends
def test_the_preflight_of_an_allowed_page_needs_no_token(frontend: Frontend) -> None:
    lines = [f"{name}: {value}".encode() for name, value in PAGE.items()]
    method = b"Access-Control-Request-Method: POST"
    names = b"Access-Control-Request-Headers: authorization,content-type"
    response = exchange(frontend.url, head(INFER, *lines, method, names, method=b"OPTIONS"))
    assert (response.status, response.body) == (204, b"")
    assert response.headers["access-control-allow-origin"] == PAGE["Origin"]
    assert {"authorization", "content-type"} <= set(response.headers["access-control-allow-headers"].split(", "))


@all_frontends
def test_an_allowed_page_reads_streams_results_and_errors(frontend: Frontend) -> None:
    for body, status in (
        ({"prompt": "a b"}, 200),
        ({"prompt": "a b", "stream": False}, 200),
        ({"prompt": 1}, 400),
    ):
        response = frontend.client.post(INFER, json=body, headers=PAGE)
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == PAGE["Origin"]
        assert response.headers["vary"] == "Origin"
        if body == {"prompt": "a b"}:
            assert response.content.endswith(DONE)


@all_frontends
def test_a_link_on_another_page_leads_to_the_root(frontend: Frontend) -> None:
    foreign = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert frontend.client.get("/", headers=foreign).status_code == 404  # there is no page yet
    assert frontend.client.get("/v1/workers", headers=foreign).status_code == 403
