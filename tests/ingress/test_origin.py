"""Which hosts and which web pages are served, and what a browser is told about it."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import pytest
from starlette.routing import Route

from rbee_serve.errors import ConfigurationError
from tests.ingress.application import application, configured, serving
from tests.ingress.bad_json import GOOD
from tests.ingress.origin_servers import INFER, READY, TOKEN, code
from tests.raw_http import exchange, head, whole

PAGE = b"Origin: https://app.example"
ALLOW_ORIGIN = "access-control-allow-origin"


FOREIGN = [
    [b"Origin: https://evil.example"],
    [b"Origin: http://evil.example:80"],
    [b"Origin: null"],
    [b"Origin: "],
    [b"Origin: localhost"],
    [b"Origin: http://localhost:3000"],
    [b"Origin: http://localhost:443"],
    [b"Origin: https://localhost"],
    [b"Origin: http://127.0.0.1"],
    [b"Origin: http://localhost."],
    [b"Origin: http://localhost/"],
    [b"Origin: http://localhost.evil.example"],
    [b"Origin: http://localhost@evil.example"],
    [b"Origin: http://localhost http://evil.example"],
    [b"Origin: chrome-extension://abcdefghijklmnop"],
    [b"Origin: file://"],
    [b"Origin: \xff"],
    [b"Origin: http://localhost", b"Origin: http://evil.example"],
    [b"Origin: http://localhost", b"Origin: http://localhost"],
    [b"Origin: https://box.example"],
    [b"Origin: http://box.example:8443"],
    [b"Sec-Fetch-Site: cross-site"],
    [b"Sec-Fetch-Site: Cross-Site"],
    [b"Sec-Fetch-Site: same-site"],
    [b"Sec-Fetch-Site: "],
    [b"Sec-Fetch-Site: same-origin", b"Sec-Fetch-Site: cross-site"],
    [b"Sec-Fetch-Site: cross-site", b"Origin: http://localhost"],
    [b"Sec-Fetch-Site: same-origin", b"Origin: http://evil.example"],
    [b"Sec-Fetch-Site: none", b"Origin: null"],
]


@pytest.mark.parametrize("lines", FOREIGN, ids=repr)
def test_a_foreign_page_is_refused_before_any_work(open_url: str, lines: list[bytes]) -> None:
    for request in (
        head(INFER, b"Content-Length: 1000", b"Content-Type: text/plain", *lines),  # the body never comes
        whole("/v1/inference", GOOD, *lines),
        head(READY, *lines, method=b"GET"),
        head("/health", *lines, method=b"GET"),
        head(INFER, b"Access-Control-Request-Method: POST", *lines, method=b"OPTIONS"),
    ):
        response = exchange(open_url, request)
        assert (response.status, code(response)) == (403, "ORIGIN_NOT_ALLOWED")
        assert ALLOW_ORIGIN not in response.headers
        assert response.headers["x-correlation-id"]


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [b"Content-Type: application/x-www-form-urlencoded"],
        [b"Sec-Fetch-Site: none"],
        [b"Sec-Fetch-Site: same-origin", b"Sec-Fetch-Mode: cors", b"Origin: http://localhost"],
        [b"Origin: HTTP://LOCALHOST:80"],
        [b"Origin: https://box.example:8443"],
        [b"Referer: https://evil.example/"],
    ],
    ids=repr,
)
def test_native_clients_and_the_servers_own_pages_are_served(open_url: str, lines: list[bytes]) -> None:
    for request in (head(READY, *lines, method=b"GET"), head("/health", *lines, method=b"HEAD")):
        assert exchange(open_url, request).status == 200
    assert code(exchange(open_url, whole(INFER, b"{}", *lines))) == "INVALID_REQUEST"  # which the application decides


def test_the_port_of_the_own_origin_is_that_of_the_host(open_url: str) -> None:
    for host, origin, status in [
        (b"localhost:8000", b"http://localhost:8000", 200),
        (b"LOCALHOST:08000", b"http://localhost:8000", 200),
        (b"[::1]:8000", b"http://[::1]:8000", 200),
        (b"localhost:8000", b"http://localhost", 403),
        (b"localhost", b"http://localhost:8000", 403),
        (b"[::1]:8000", b"http://[::1]:8001", 403),
    ]:
        response = exchange(open_url, head(READY, b"Origin: " + origin, method=b"GET", host=host))
        assert response.status == status, origin


@pytest.mark.parametrize("lines", FOREIGN[:5], ids=repr)
def test_a_link_on_any_page_may_lead_to_the_root(open_url: str, lines: list[bytes]) -> None:
    navigation = [*lines, b"Sec-Fetch-Site: cross-site", b"Sec-Fetch-Mode: navigate"]
    for method in (b"GET", b"HEAD"):
        assert exchange(open_url, head("/", *navigation, method=method)).status == 404  # there is no page yet
    assert exchange(open_url, head("/", *navigation)).status == 403
    for target in ("//", "/?x=/", "/v1/workers", "/v1/workers?/", "/."):
        assert exchange(open_url, head(target, *navigation, method=b"GET")).status == (
            404 if target == "/?x=/" else 403
        )


def test_the_rule_of_origin_holds_on_every_route_with_and_without_a_token(open_url: str, url_with_token: str) -> None:
    allowed = b"Authorization: Bearer " + TOKEN
    routes = application(None).routes
    assert len(routes) >= 9
    for route in routes:
        assert isinstance(route, Route), f"{route} is of a type that this test does not handle"
        target = route.path.replace("{worker_id}", "echo-0")
        for method in (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS"):
            for lines in ([b"Origin: https://evil.example"], [b"Sec-Fetch-Site: cross-site"]):
                for at, more in ((open_url, []), (url_with_token, [allowed]), (url_with_token, [])):
                    response = exchange(at, head(target, b"Content-Length: 0", *more, *lines, method=method))
                    assert response.status == 403, (method, target)


@pytest.mark.parametrize(
    ("lines", "status"),
    [([], 401), ([b"Authorization: Bearer wrong"], 401), ([b"Authorization: Bearer " + TOKEN], 400)],
    ids=["no token", "wrong token", "token"],
)
def test_an_allowed_page_can_read_every_response(url_with_token: str, lines: list[bytes], status: int) -> None:
    response = exchange(url_with_token, whole(INFER, b"{}", PAGE, b"Sec-Fetch-Site: cross-site", *lines))
    assert response.status == status
    assert response.headers[ALLOW_ORIGIN] == "https://app.example"
    assert response.headers["vary"] == "Origin"
    assert {"X-Correlation-ID", "Retry-After"} <= set(response.headers["access-control-expose-headers"].split(", "))
    assert "access-control-allow-credentials" not in response.headers


def test_an_allowed_page_can_read_that_there_is_no_such_path_or_method(url_with_token: str) -> None:
    allowed = b"Authorization: Bearer " + TOKEN
    for method, target, status in ((b"GET", "/nothing", 404), (b"PUT", INFER, 405), (b"GET", "/health", 200)):
        response = exchange(url_with_token, head(target, PAGE, allowed, method=method))
        assert (response.status, response.headers[ALLOW_ORIGIN]) == (status, "https://app.example")


def test_a_page_from_a_file_is_allowed_by_name_only(url_with_token: str, open_url: str) -> None:
    response = exchange(url_with_token, head("/health", b"Origin: null", b"Sec-Fetch-Site: cross-site", method=b"GET"))
    assert (response.status, response.headers[ALLOW_ORIGIN]) == (200, "null")
    assert exchange(open_url, head("/health", b"Origin: null", method=b"GET")).status == 403


def test_a_cross_site_request_without_an_origin_is_of_no_page_that_is_allowed(url_with_token: str) -> None:
    assert exchange(url_with_token, head("/health", b"Sec-Fetch-Site: cross-site", method=b"GET")).status == 403


def test_a_response_without_an_origin_differs_from_one_with_it_for_caches(url_with_token: str, open_url: str) -> None:
    response = exchange(url_with_token, head("/health", method=b"GET"))
    assert response.headers["vary"] == "Origin"
    assert ALLOW_ORIGIN not in response.headers
    assert "vary" not in exchange(open_url, head("/health", method=b"GET")).headers


def test_a_preflight_needs_no_token(url_with_token: str) -> None:
    lines = [
        PAGE,
        b"Sec-Fetch-Site: cross-site",
        b"Access-Control-Request-Method: POST",
        b"Access-Control-Request-Headers: authorization,content-type,x-stainless-lang",
        b"Access-Control-Request-Private-Network: true",
    ]
    for target in (INFER, "/v1/inference", "/v1/workers", "/nothing"):
        response = exchange(url_with_token, head(target, *lines, method=b"OPTIONS"))
        assert (response.status, response.body) == (204, b"")
        assert response.headers[ALLOW_ORIGIN] == "https://app.example"
        assert "POST" in response.headers["access-control-allow-methods"]
        names = set(response.headers["access-control-allow-headers"].split(", "))
        assert names == {
            "authorization", "content-type", "x-correlation-id", "x-request-timeout-ms", "idempotency-key",
            "last-event-id", "x-stainless-lang",
        }  # fmt: skip
        assert response.headers["access-control-allow-private-network"] == "true"
        assert 0 < int(response.headers["access-control-max-age"]) <= 7200
        assert response.headers["x-correlation-id"]


@pytest.mark.parametrize("names", [b"x" * 5000, b"a\xff", b"a;b", b"a: b", b", ,", b""], ids=repr)
def test_malformed_names_of_headers_are_left_out(url_with_token: str, names: bytes) -> None:
    method = b"Access-Control-Request-Method: POST"
    request = head(INFER, PAGE, method, b"Access-Control-Request-Headers: " + names, method=b"OPTIONS")
    response = exchange(url_with_token, request)
    assert response.status == 204
    assert len(response.headers["access-control-allow-headers"].split(", ")) == 6


def test_options_that_are_no_preflight_are_requests_like_others(url_with_token: str, open_url: str) -> None:
    assert exchange(open_url, head(INFER, method=b"OPTIONS")).status == 405
    assert exchange(url_with_token, head(INFER, method=b"OPTIONS")).status == 401
    assert exchange(url_with_token, head(INFER, PAGE, method=b"OPTIONS")).status == 401
    foreign = [b"Origin: https://evil.example", b"Access-Control-Request-Method: POST"]
    assert exchange(url_with_token, head(INFER, *foreign, method=b"OPTIONS")).status == 403


def test_every_page_may_be_allowed() -> None:
    with serving(application(None, cors={"allow_origins": ["*"]}), "httptools") as url:
        for line in (PAGE, b"Origin: null", b"Origin: x", b"Sec-Fetch-Site: cross-site", b"Accept: */*"):
            response = exchange(url, head("/health", line, method=b"GET"))
            assert response.status == 200
            assert response.headers[ALLOW_ORIGIN] == ("*" if line.startswith(b"Origin") else None)
        assert exchange(url, head("/health", PAGE, method=b"GET", host=b"evil.example")).status == 421


def test_an_allowed_page_may_be_on_another_port_of_this_machine() -> None:
    origins = [
        "HTTP://LocalHost:3000",
        "chrome-extension://abcdef",
        "tauri://localhost",
        "https://b\u00fccher.example:443",
    ]
    with serving(application(None, cors={"allow_origins": origins}), "httptools") as url:
        for origin in (
            b"http://localhost:3000",
            b"chrome-extension://abcdef",
            b"tauri://localhost",
            b"https://xn--bcher-kva.example",
        ):
            response = exchange(url, head(READY, b"Origin: " + origin, b"Sec-Fetch-Site: same-site", method=b"GET"))
            assert (response.status, response.headers[ALLOW_ORIGIN]) == (200, origin.decode())
        for origin in (b"http://localhost:3001", b"https://localhost:3000", b"http://localhost"):
            expected = 200 if origin == b"http://localhost" else 403  # the last one is the server's own
            assert exchange(url, head(READY, b"Origin: " + origin, method=b"GET")).status == expected


@pytest.mark.parametrize(
    "origin",
    [
        "app.example", "https://app.example/", "https://app.example/x", "https://*.example", "https://a@app.example",
        "https://app.example:0", "https://app.example:99999", "https://app.example:x", "https://", "//app.example", "",
        "https://app.example?x", "https://[::1", "**",
    ],
)  # fmt: skip
def test_what_is_no_origin_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^cors.allow_origins\[1\]: must be an origin such as https://app"):
        application(None, cors={"allow_origins": ["https://good.example", origin]})


@pytest.mark.parametrize("token", [None, TOKEN], ids=["no token", "token"])
async def test_a_websocket_is_refused(token: bytes | None) -> None:
    app = application(token, cors={"allow_origins": ["*"]})
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "websocket.connect"}

    headers = [(b"host", b"localhost"), (b"authorization", b"Bearer " + TOKEN)]
    for path in ("/health", "/", INFER):
        await app({"type": "websocket", "path": path, "headers": headers}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}] * 3


async def test_a_page_can_read_that_the_server_failed() -> None:
    app = configured(
        {"workers": [{"id": "echo-0", "type": "echo"}], "cors": {"allow_origins": ["https://app.example"]}}
    )
    app.router.routes.insert(0, Route("/broken", broken))
    with serving(app, "httptools") as url:
        response = exchange(url, head("/broken", PAGE, method=b"GET"))
    assert (response.status, code(response)) == (500, "INTERNAL")
    assert response.headers[ALLOW_ORIGIN] == "https://app.example"
    assert response.headers["x-correlation-id"]


async def broken(request: Any) -> Any:
    raise RuntimeError("a fault")
