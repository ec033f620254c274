"""Which hosts and which web pages are served, and what a browser is told about it."""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
from starlette.routing import Route

from rbee_serve.errors import ConfigurationError
from rbee_serve.ingress.host import host_name, is_loopback
from tests.ingress.application import application, configured, serving
from tests.ingress.bad_json import GOOD
from tests.raw_http import RawResponse, exchange, head, whole

PUBLIC_URL = "https://box.example:8443"
PAGE = b"Origin: https://app.example"
TOKEN = b"s3cret"
READY, INFER = "/workers/echo-0/v1/ready", "/workers/echo-0/v1/inference"
ALLOW_ORIGIN = "access-control-allow-origin"


@pytest.fixture(scope="module", params=["httptools", "h11"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """No token, and no page is allowed."""
    with serving(application(None, public_url=PUBLIC_URL), request.param) as url:
        yield url


@pytest.fixture(scope="module")
def url_with_token() -> Iterator[str]:
    with serving(application(TOKEN, cors={"allow_origins": ["https://app.example", "null"]}), "httptools") as url:
        yield url


def code(response: RawResponse) -> str:
    return str(json.loads(response.body)["code"])


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "localhost:8000", "LocalHost", "localhost.", "localhost.:8000", "localhost:", "127.0.0.1",
        "127.0.0.1:65535", "127.255.0.9", "127.1", "0x7f.1", "2130706433", "[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]", "app.localhost", "a.b.LOCALHOST.", "box.example", "BOX.example:8443", "box.example.:80",
    ],
)  # fmt: skip
def test_loopback_names_and_the_public_host_are_served_in_every_spelling(url: str, host: str) -> None:
    assert exchange(url, head(READY, method=b"GET", host=host.encode())).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "", " ", "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example",
        "127.0.0.1.nip.io", "localhostx", "xlocalhost", ".localhost", "localhost..", "localhost.localdomain",
        "10.0.0.7", "192.168.1.9:8000", "0.0.0.0", "0", "[::]", "[::2]", "[::1", "::1", "[::1%lo]", "[127.0.0.1]",
        "[localhost]", "localhost:x", "localhost:-1", "localhost:65536", "localhost:80:80", "admin@localhost",
        "localhost@evil.example", "localhost/", "localhost/x", "localhost?x", "localhost#", "local host",
        "localhost,evil.example", "http://localhost", "box.example.evil.example", "xbox.example", "example", "\xff",
        "l\u00f6calhost", "localhost\x0b", "*", "%6cocalhost", "167772167", "127.0.0.1x", "a" * 300,
    ],
)  # fmt: skip
def test_other_hosts_are_refused_before_any_work(url: str, host: str) -> None:
    for request in (
        head(READY, method=b"GET", host=host.encode("latin-1")),
        head("/health", method=b"GET", host=host.encode("latin-1")),
        head("/", method=b"GET", host=host.encode("latin-1")),
        head(INFER, b"Content-Length: 1000", host=host.encode("latin-1")),  # the body never comes
    ):
        response = exchange(url, request)
        if response.status != 400:  # not HTTP for the parser
            assert (response.status, code(response)) == (421, "MISDIRECTED_REQUEST")
            assert response.headers["x-correlation-id"]


def test_a_public_url_with_letters_beyond_ascii_is_known_as_clients_send_it() -> None:
    with serving(application(None, public_url="http://B\u00fccher.example:8000"), "httptools") as url:
        for host, status in (
            (b"xn--bcher-kva.example:8000", 200),
            (b"b\xfccher.example", 421),
            (b"bucher.example", 421),
        ):
            assert exchange(url, head(READY, method=b"GET", host=host)).status == status


def test_a_name_is_loopback_only_if_nobody_else_can_own_it() -> None:
    assert host_name(b"[::1]:8000") == "::1"
    assert host_name(b"a..b") == "a..b"
    assert not is_loopback("a..b")
    assert not is_loopback("")


def test_several_hosts_are_refused(url: str) -> None:
    for hosts in ([b"Host: localhost", b"Host: localhost"], [b"Host: localhost", b"Host: evil.example"]):
        response = exchange(url, head(READY, *hosts, method=b"GET", host=None))
        assert response.status in (400, 421)


def test_http_1_0_needs_no_host(url: str) -> None:
    old = head(READY, method=b"GET", host=None).replace(b"HTTP/1.1", b"HTTP/1.0")
    assert exchange(url, old).status == 200
    assert exchange(url, head(READY, method=b"GET", host=None)).status in (400, 421)
    evil = head(READY, method=b"GET", host=b"evil.example").replace(b"HTTP/1.1", b"HTTP/1.0")
    assert exchange(url, evil).status == 421


def test_a_url_as_the_target_does_not_replace_the_host(url: str) -> None:
    response = exchange(url, head(f"http://localhost{READY}", method=b"GET", host=b"evil.example"))
    assert response.status == 421


def test_headers_of_proxies_do_not_replace_the_host(url: str) -> None:
    lines = [b"X-Forwarded-Host: localhost", b"Forwarded: host=localhost", b"X-Host: localhost"]
    assert exchange(url, head(READY, *lines, method=b"GET", host=b"evil.example")).status == 421


def test_with_a_token_every_host_is_served(url_with_token: str) -> None:
    allowed = b"Authorization: Bearer " + TOKEN
    for host in (b"evil.example", b"10.0.0.7:8000", b"pod-7"):
        assert exchange(url_with_token, head(READY, allowed, method=b"GET", host=host)).status == 200
        assert exchange(url_with_token, head("/health", method=b"GET", host=host)).status == 200


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
def test_a_foreign_page_is_refused_before_any_work(url: str, lines: list[bytes]) -> None:
    for request in (
        head(INFER, b"Content-Length: 1000", b"Content-Type: text/plain", *lines),  # the body never comes
        whole("/v1/inference", GOOD, *lines),
        head(READY, *lines, method=b"GET"),
        head("/health", *lines, method=b"GET"),
        head(INFER, b"Access-Control-Request-Method: POST", *lines, method=b"OPTIONS"),
    ):
        response = exchange(url, request)
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
def test_native_clients_and_the_servers_own_pages_are_served(url: str, lines: list[bytes]) -> None:
    for request in (head(READY, *lines, method=b"GET"), head("/health", *lines, method=b"HEAD")):
        assert exchange(url, request).status == 200
    assert code(exchange(url, whole(INFER, b"{}", *lines))) == "INVALID_REQUEST"  # which the application decides


def test_the_port_of_the_own_origin_is_that_of_the_host(url: str) -> None:
    for host, origin, status in [
        (b"localhost:8000", b"http://localhost:8000", 200),
        (b"LOCALHOST:08000", b"http://localhost:8000", 200),
        (b"[::1]:8000", b"http://[::1]:8000", 200),
        (b"localhost:8000", b"http://localhost", 403),
        (b"localhost", b"http://localhost:8000", 403),
        (b"[::1]:8000", b"http://[::1]:8001", 403),
    ]:
        response = exchange(url, head(READY, b"Origin: " + origin, method=b"GET", host=host))
        assert response.status == status, origin


@pytest.mark.parametrize("lines", FOREIGN[:5], ids=repr)
def test_a_link_on_any_page_may_lead_to_the_root(url: str, lines: list[bytes]) -> None:
    navigation = [*lines, b"Sec-Fetch-Site: cross-site", b"Sec-Fetch-Mode: navigate"]
    for method in (b"GET", b"HEAD"):
        assert exchange(url, head("/", *navigation, method=method)).status == 404  # there is no page yet
    assert exchange(url, head("/", *navigation)).status == 403
    for target in ("//", "/?x=/", "/v1/workers", "/v1/workers?/", "/."):
        assert exchange(url, head(target, *navigation, method=b"GET")).status == (404 if target == "/?x=/" else 403)


def test_the_rule_of_origin_holds_on_every_route_with_and_without_a_token(url: str, url_with_token: str) -> None:
    allowed = b"Authorization: Bearer " + TOKEN
    routes = application(None).routes
    assert len(routes) >= 9
    for route in routes:
        assert isinstance(route, Route), f"{route} is of a type that this test does not handle"
        target = route.path.replace("{worker_id}", "echo-0")
        for method in (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS"):
            for lines in ([b"Origin: https://evil.example"], [b"Sec-Fetch-Site: cross-site"]):
                for at, more in ((url, []), (url_with_token, [allowed]), (url_with_token, [])):
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


def test_a_page_from_a_file_is_allowed_by_name_only(url_with_token: str, url: str) -> None:
    response = exchange(url_with_token, head("/health", b"Origin: null", b"Sec-Fetch-Site: cross-site", method=b"GET"))
    assert (response.status, response.headers[ALLOW_ORIGIN]) == (200, "null")
    assert exchange(url, head("/health", b"Origin: null", method=b"GET")).status == 403


def test_a_cross_site_request_without_an_origin_is_of_no_page_that_is_allowed(url_with_token: str) -> None:
    assert exchange(url_with_token, head("/health", b"Sec-Fetch-Site: cross-site", method=b"GET")).status == 403


def test_a_response_without_an_origin_differs_from_one_with_it_for_caches(url_with_token: str, url: str) -> None:
    response = exchange(url_with_token, head("/health", method=b"GET"))
    assert response.headers["vary"] == "Origin"
    assert ALLOW_ORIGIN not in response.headers
    assert "vary" not in exchange(url, head("/health", method=b"GET")).headers


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


def test_options_that_are_no_preflight_are_requests_like_others(url_with_token: str, url: str) -> None:
    assert exchange(url, head(INFER, method=b"OPTIONS")).status == 405
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


@pytest.mark.parametrize("url", ["http://[::1", "http://a@box", "http://box:99999", "http://box?x"])
def test_a_public_url_without_a_host_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^public_url: must be a scheme"):
        application(None, public_url=url)


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
