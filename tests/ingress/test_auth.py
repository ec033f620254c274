"""Every route but `/health` needs the token, however the request is written."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from rbee_serve.config import AuthConfig
from rbee_serve.ingress.auth import BearerAuth, fingerprint
from rbee_serve.ingress.keys import KeyRing
from tests.ingress.application import application, serving
from tests.raw_http import RawResponse, exchange, head, whole

TOKEN = "gehéim-s3cret".encode()
"""Not ASCII: `compare_digest` of two texts would raise on it."""
ALLOWED = b"Authorization: Bearer " + TOKEN
METHODS = [b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE"]


@pytest.fixture(scope="module", params=["httptools", "h11"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with serving(application(TOKEN), request.param) as url:
        yield url


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Every line that rbee-serve logs."""
    lines: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("rbee_serve")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)


def code(answer: RawResponse) -> str:
    assert answer.status == 401, answer
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-correlation-id"]
    assert TOKEN not in answer.raw
    return str(json.loads(answer.body)["error"]["code"])


def test_every_route_but_health_needs_the_token(url: str) -> None:
    routes = application(TOKEN).routes
    open_routes = set()
    for route in routes:
        assert isinstance(route, Route), f"{route} is of a type that this test does not handle"
        for method in METHODS:
            target = route.path.replace("{worker_id}", "echo-0")
            answer = exchange(url, head(target, b"Content-Length: 0", method=method))
            if answer.status == 401:
                assert not answer.body or code(answer) == "MISSING_API_KEY"
            else:
                open_routes.add((method, target, answer.status))
            allowed = exchange(url, head(target, ALLOWED, b"Content-Length: 0", method=method))
            assert (allowed.status == 405) == (method.decode() not in (route.methods or ()))
    assert len(routes) >= 9
    assert open_routes == {
        (b"GET", "/health", 200),
        (b"HEAD", "/health", 200),
        (b"GET", "/workers/echo-0/health", 200),
        (b"HEAD", "/workers/echo-0/health", 200),
    }


@pytest.mark.parametrize(
    "target",
    [
        "//health", "/health/", "/health//", "/health/.", "/health/..", "/./health", "/x/../health", "/HEALTH",
        "health", "/health/../v1/workers", "/health/..;/v1/workers", "/health;/../v1/workers", "/health;x",
        "/health%2f", "/health%00", "/health%0a", "/health%0d%0a", "/health%20", "/health%3f",
        "/health%23/../v1/workers", "/health%2f..%2fv1%2fworkers", "/%2e%2e/health", "/%2fhealth", "//v1/workers",
        "/v1//workers", "/v1%2fworkers", "/v1/workers;/health", "/v1/workers%00/health", "/v1/workers%3f/health",
        "/v1/workers?/health", "/v1/workers?path=/health", "/v1/workers#/health", "/nothing",
        "/workers/echo-0/health/", "/workers/echo-0/health/../info", "/workers/echo-0/health%2f..%2finfo",
        "/workers/echo-0/health;/info", "/workers/echo-0/info;/health", "/workers/echo-0/info/health",
        "/workers/echo-0/info%0a", "/workers/echo-0/info%3f/health", "/workers/echo-0%2finfo",
        "/workers%2fecho-0%2finfo", "/workers//health", "/workers/../health", "/workers/..%2f..%2fhealth",
        "/workers/echo-0%0a/health", "/workers/a/b/health", "/workers/%ff/health", "/workers/echo-0\\health",
        "/workers/echo-0/v1/health", "http://localhost/v1/workers", "http://localhost/health/../v1/workers",
        "http://localhost//health", "http://health/workers/echo-0/info", "http:///health", "//localhost/health", "*",
        "localhost:80",
    ],
)  # fmt: skip
def test_no_spelling_of_a_path_passes_without_the_token(url: str, target: str) -> None:
    for method in METHODS:
        answer = exchange(url, head(target, method=method))
        # 400: not HTTP for the parser.
        assert answer.status in (400, 401), (method, answer)
        assert b"echo" not in answer.body


def test_every_spelling_of_an_open_path_passes_without_the_token(url: str) -> None:
    for target in ("/health?a=b", "/%68ealth", "/workers%2fecho-0%2fhealth", "/workers/echo-0/health?x"):
        assert exchange(url, head(target, method=b"GET")).status == 200
    assert exchange(url, head("/workers/nobody/health", method=b"GET")).status == 404


@pytest.mark.parametrize("root_path", ["", "/", "/api", "/workers", "/workers/a", "/health"])
async def test_below_a_prefix_only_the_same_paths_are_open(tmp_path: Path, root_path: str) -> None:
    (tmp_path / "token").write_bytes(TOKEN)
    reached: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope["path"])

    async def send(message: Message) -> None:
        assert message.get("status", 401) == 401

    async def receive() -> Message:
        return {"type": "http.request"}

    auth = BearerAuth(app, KeyRing(AuthConfig(token_file=tmp_path / "token")))
    prefix = root_path.rstrip("/")
    for path in ("/health", "/workers/echo-0/health", "", "/", "/info", "/v1/workers", "/x/health", "health"):
        scope = {"type": "http", "method": "GET", "headers": [], "root_path": root_path, "path": prefix + path}
        await auth(scope, receive, send)
    assert reached == [f"{prefix}/health", f"{prefix}/workers/echo-0/health"]


@pytest.mark.parametrize(
    "lines",
    [
        [b"Host: localhost/health"],
        [b"Host: localhost/health?"],
        [b"Host: localhost/health#"],
        [b"Host: localhost/workers/x/health?"],
        [b"Host: localhost", b"Host: localhost/health?"],
        [b"Host: localhost", b"X-Forwarded-Host: localhost/health?"],
        [b"Host: localhost", b"X-Forwarded-Prefix: /health", b"X-Forwarded-Path: /health"],
        [b"Host: localhost", b"X-Original-URL: /health", b"X-Rewrite-URL: /health"],
        [b"Host: localhost", b"X-HTTP-Method-Override: GET", b"X-Forwarded-For: 127.0.0.1"],
        [b"Host: localhost", b"Upgrade: websocket", b"Connection: Upgrade"],
    ],
)
def test_no_header_passes_without_the_token(url: str, lines: list[bytes]) -> None:
    for method, target in ((b"GET", "/v1/workers"), (b"GET", "/workers/echo-0/info"), (b"POST", "/v1/inference")):
        answer = exchange(url, head(target, *lines, method=method, host=None))
        assert answer.status in (400, 401), answer


@pytest.mark.parametrize(
    "values",
    [
        [b""],
        [b"Bearer"],
        [b"Bearer "],
        [b"Bearer wrong"],
        [b"Bearer \xff\xfe"],
        [b"Bearer " + TOKEN[:-1]],
        [b"Bearer " + TOKEN + b"x"],
        [b"Bearer " + TOKEN.upper()],
        [b"Bearer\t" + TOKEN],
        [b"Bearer=" + TOKEN],
        [b"Bearer " + TOKEN + b", Bearer " + TOKEN],
        [b"Bearer Bearer " + TOKEN],
        [b"Basic " + TOKEN],
        [TOKEN],
        [b"Bearer " + TOKEN, b"Bearer " + TOKEN],
        [b"Bearer wrong", b"Bearer " + TOKEN],
        [b"Bearer " + TOKEN, b"Basic x"],
    ],
    ids=repr,
)
def test_a_wrong_token_is_refused_and_stays_out_of_the_log(url: str, log: list[str], values: list[bytes]) -> None:
    answer = exchange(url, head("/v1/workers", *(b"Authorization: " + value for value in values), method=b"GET"))
    assert code(answer) == "INVALID_API_KEY"
    assert TOKEN.decode() not in "".join(log)
    assert TOKEN.decode("latin-1") not in "".join(log)


def test_a_token_of_a_megabyte_is_refused() -> None:
    with serving(application(TOKEN), "httptools") as url:  # h11 reads no header of that size
        answer = exchange(url, head("/v1/workers", b"Authorization: Bearer " + b"x" * 1024**2, method=b"GET"))
    assert code(answer) == "INVALID_API_KEY"


def test_a_token_outside_of_its_header_is_ignored(url: str) -> None:
    headers = [b"Cookie: token=" + TOKEN, b"X-API-Key: " + TOKEN, b"Proxy-Authorization: Bearer " + TOKEN]
    answer = exchange(url, head("/v1/workers?token=s3cret&access_token=s3cret", *headers, method=b"GET"))
    assert code(answer) == "MISSING_API_KEY"


@pytest.mark.parametrize("value", [b"Bearer " + TOKEN, b"bearer " + TOKEN, b"BEARER   " + TOKEN + b"  "], ids=repr)
def test_the_token_opens_every_route(url: str, value: bytes) -> None:
    listed = exchange(url, head("/v1/workers", b"Authorization: " + value, method=b"GET"))
    assert json.loads(listed.body)["workers"][0]["id"] == "echo-0"
    refused = exchange(url, whole("/workers/echo-0/v1/inference", b"{}", b"Authorization: " + value))
    assert json.loads(refused.body)["code"] == "INVALID_REQUEST"


def test_a_refusal_is_logged_with_a_fingerprint_and_cannot_forge_a_line(url: str, log: list[str]) -> None:
    target = "/x%0a2026-01-01%20INFO%20all%20is%20well%1b%5b2J" + "y" * 5000
    code(exchange(url, head(target, b"Authorization: Bearer wrong", method=b"GET")))
    refused, access = log
    assert refused.endswith(f"token {fingerprint(b'wrong')}")
    assert access.startswith("GET '/x")
    for line in log:
        assert line.isprintable()
        assert len(line) < 400
