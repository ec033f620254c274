"""Tables of bad HTTP: requests to the echo worker, and the expected responses."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tests.conftest import MAX_BODY_BYTES
from tests.ingress.bad_json import GOOD, INFER, WORKER
from tests.raw_http import chunk, head, whole

BASE = f"/workers/{WORKER}"
MIB = 1024**2

BY_SERVER = "by the HTTP server"
"""The code of a response that is not ours: the HTTP parser, Ray's proxy or HAProxy responds before our code runs."""
ACCEPTED = ""
"""The code of a response that is no error: the request is unusual and harmless."""

Expected = tuple[int, str]
"""Status and code."""
REFUSED_BY_HAPROXY = (400, BY_SERVER)
"""HAProxy is stricter with hosts, and refuses a request line and headers of more than 15 kB."""
TOO_LARGE = (431, "HEADERS_TOO_LARGE")
"""Our own listener refuses a request line and headers of more than 64 KB, and more than 256 headers."""


@dataclass(frozen=True)
class Case:
    """One bad request and the expected response. `request` makes it for each use, so it can be a slow generator."""

    name: str
    request: Callable[[], bytes | Iterable[bytes]]
    usual: Expected
    elsewhere: dict[str, Expected]
    """The expected response behind the frontends where it differs."""

    def __str__(self) -> str:
        return self.name

    def expected(self, frontend: str) -> Expected:
        """The expected response behind this frontend. Our own listener refuses with a code of ours."""
        status, code = self.usual
        by_default = (status, "INVALID_REQUEST") if (frontend, code) == ("own", BY_SERVER) else self.usual
        return self.elsewhere.get(frontend, by_default)


def case(name: str, request: bytes, status: int = 200, code: str = ACCEPTED, **elsewhere: Expected) -> Case:
    return slow_case(name, lambda: request, status, code, **elsewhere)


def slow_case(
    name: str, request: Callable[[], bytes | Iterable[bytes]], status: int, code: str, **elsewhere: Expected
) -> Case:
    return Case(name, request, (status, code), elsewhere)


def byte_by_byte() -> Iterator[bytes]:
    yield head(INFER, b"Content-Length: 1000")
    for _ in range(100):
        yield b" "
        time.sleep(0.1)


def endless() -> Iterator[bytes]:
    yield head(INFER, b"Transfer-Encoding: chunked")
    for _ in range(200):
        yield chunk(b" " * 65536)


# Behind HAProxy there is a token, so any host is accepted.
HOSTS = [
    *(
        case(f"Host: {name}", whole(INFER, GOOD, host=host), 421, "MISDIRECTED_REQUEST", haproxy=(200, ACCEPTED))
        for name, host in [
            ("missing", None),
            ("empty", b""),
            ("foreign", b"evil.example"),
            ("no such port", b"localhost:99999999"),
        ]
    ),
    *(
        case(f"Host: {name}", whole(INFER, GOOD, host=host), 421, "MISDIRECTED_REQUEST", haproxy=REFUSED_BY_HAPROXY)
        for name, host in [
            ("a path", b"localhost/health"),
            ("a path and a query", b"localhost/health?"),
            ("a fragment", b"localhost#"),
            ("a user", b"admin@localhost"),
            ("no closing bracket", b"[::1"),
            ("bytes over 127", b"\xff\xfe"),
        ]
    ),
    case(
        "Host: twice",
        whole(INFER, GOOD, b"Host: evil.example"),
        421,
        "MISDIRECTED_REQUEST",
        haproxy=REFUSED_BY_HAPROXY,
    ),
    case(
        "Host: 64 kB",
        whole(INFER, GOOD, host=b"a" * 65536),
        421,
        "MISDIRECTED_REQUEST",
        haproxy=REFUSED_BY_HAPROXY,
        own=TOO_LARGE,
    ),
    case("X-Forwarded-*", whole(INFER, GOOD, b"X-Forwarded-Host: evil", b"X-Forwarded-Prefix: /health")),
]

ORIGINS = [
    *(
        case(f"from a page: {b', '.join(lines)!r}", whole(INFER, GOOD, *lines), 403, "ORIGIN_NOT_ALLOWED")
        for lines in [
            [b"Origin: https://evil.example"],
            [b"Origin: http://localhost:3000"],
            [b"Origin: null", b"Content-Type: text/plain"],
            [b"Sec-Fetch-Site: cross-site"],
            [b"Origin: http://localhost", b"Origin: http://evil.example"],
        ]
    ),
    case("from a page of the server", whole(INFER, GOOD, b"Origin: http://localhost", b"Sec-Fetch-Site: same-origin")),
]

TARGETS: list[tuple[str | bytes, int, str]] = [
    (f"//{BASE}/v1/ready", 404, "NOT_FOUND"),
    (f"/{BASE}/v1/ready", 404, "NOT_FOUND"),
    (f"{BASE}//v1/ready", 404, "NOT_FOUND"),
    (f"{BASE}/v1/ready/", 200, ACCEPTED),
    (f"{BASE}/v1/ready//", 404, "NOT_FOUND"),
    (f"{BASE}/v1/ready;x=1", 404, "NOT_FOUND"),
    (f"{BASE}/v1/ready%00", 404, "NOT_FOUND"),
    (f"{BASE}/v1/ready%20", 404, "NOT_FOUND"),
    (f"{BASE}/V1/READY", 404, "NOT_FOUND"),
    (f"{BASE}/health/../info", 404, "NOT_FOUND"),
    (f"{BASE}/%2e%2e/echo-small/info", 404, "NOT_FOUND"),
    (f"{BASE}/..%2f..%2fhealth", 404, "NOT_FOUND"),
    (f"{BASE}\\info", 404, "NOT_FOUND"),
    ("/workers/../health", 404, "WORKER_NOT_FOUND"),
    ("/workers/%ff/info", 404, "WORKER_NOT_FOUND"),
    ("/workers/echo-small%00/info", 404, "WORKER_NOT_FOUND"),
    ("/workers/__class__/info", 404, "WORKER_NOT_FOUND"),
    ("/workers//info", 404, "NOT_FOUND"),
    ("/workers/{worker_id}/info", 404, "WORKER_NOT_FOUND"),
    # Escapes are decoded before the path is matched, by the routes and by the authentication alike.
    ("/workers%2fecho-small%2fv1%2fready", 200, ACCEPTED),
    # Starlette's patterns end in `$`, which ignores one line end. Authentication applies all the same.
    (f"{BASE}/v1/ready%0a", 200, ACCEPTED),
    (f"{BASE}/v1/ready?../../health", 200, ACCEPTED),
    (b"/workers/\xff/info", 400, BY_SERVER),
    ("", 400, BY_SERVER),
]
LONGEST_QUERY = head(f"{BASE}/v1/ready?{'x' * 70_000}", method=b"GET")
ABSOLUTE = head(f"http://evil.example{BASE}/v1/ready", method=b"GET")
LONG_ID = head(f"/workers/{'x' * 30_000}/info", method=b"GET")
LONG_QUERY = head(f"{BASE}/v1/ready?{'x' * 30_000}", method=b"GET")
PATHS = [
    *(case(f"path: {target[:40]!r}", head(target, method=b"GET"), status, code) for target, status, code in TARGETS),
    case("path: a query of 70 kB", LONGEST_QUERY, 400, BY_SERVER, own=TOO_LARGE),
    case("path: '*'", head("*", method=b"GET"), 404, BY_SERVER, own=(404, "NOT_FOUND")),
    case("path: of another host", ABSOLUTE, haproxy=REFUSED_BY_HAPROXY),
    case("path: 30 kB", LONG_ID, 404, "WORKER_NOT_FOUND", haproxy=REFUSED_BY_HAPROXY),
    case("path: a query of 30 kB", LONG_QUERY, haproxy=REFUSED_BY_HAPROXY),
]

METHODS = [
    *(
        case(f"{method.decode()} {INFER}", head(INFER, method=method), 405, "METHOD_NOT_ALLOWED")
        for method in [b"GET", b"HEAD", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"PROPFIND"]
    ),
    *(
        case(f"POST {path}", whole(path, GOOD), 405, "METHOD_NOT_ALLOWED")
        for path in ("/health", "/v1/ready", "/v1/workers", f"{BASE}/info", f"{BASE}/v1/loading/progress")
    ),
    case("a method that does not exist", head(INFER, method=b"BREW"), 400, BY_SERVER),
    case("a method in lower case", head(INFER, method=b"post"), 400, BY_SERVER),
    case("CONNECT", head("localhost:22", method=b"CONNECT"), 400, BY_SERVER, own=(405, "METHOD_NOT_ALLOWED")),
    case("no HTTP at all", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, BY_SERVER),
]

FORM = b"Content-Type: multipart/form-data; boundary=x"
TYPES = [
    *(
        case(line.decode(), whole(INFER, gzip.compress(GOOD), *line.split(b"\n")), 415, "UNSUPPORTED_MEDIA_TYPE")
        for line in [
            b"Content-Type: image/png",
            b"Content-Type: application/octet-stream",
            b"Content-Type: application/jsonp",
            b"Content-Type: json",
            b"Content-Type: */*",
            b"Content-Encoding: gzip",
            b"Content-Encoding: GZIP",
            b"Content-Encoding: identity, gzip",
            b"Content-Encoding: identity\nContent-Encoding: gzip",
            b"Content-Encoding: deflate",
            b"Content-Encoding: br",
            b"Content-Encoding: x",
        ]
    ),
    case("a form that ends early", whole(INFER, b"--x\r\n", FORM), 400, "INVALID_REQUEST"),
    case("JSON that is declared as a form", whole(INFER, GOOD, FORM), 400, "INVALID_REQUEST"),
    case("gzip that is not declared", whole(INFER, gzip.compress(GOOD)), 400, "INVALID_REQUEST"),
    case("a gzip bomb that is not declared", whole(INFER, gzip.compress(bytes(100 * MIB))), 400, "INVALID_REQUEST"),
    case("a charset that is not UTF-8", whole(INFER, GOOD, b"Content-Type: application/json; charset=utf-16")),
]  # fmt: skip

SHORT = head(INFER, b"Content-Length: 9") + GOOD
"""HAProxy forwards the nine bytes, and responds itself to what follows, which is no request."""
BOTH_LENGTHS = whole(INFER, chunk(GOOD) + chunk(b""), b"Transfer-Encoding: chunked")
"""HAProxy forwards the chunks without the length, and closes the connection after the response."""
SIZES = [
    case("over the limit, declared", whole(INFER, b"x" * (MAX_BODY_BYTES + 1)), 413, "PAYLOAD_TOO_LARGE"),
    case("over the limit, only declared", head(INFER, b"Content-Length: 9999999999"), 413, "PAYLOAD_TOO_LARGE"),
    case("a prompt of 10 MB", whole(INFER, b'{"prompt":"' + b"x" * 10_000_000 + b'"}'), 413, "PAYLOAD_TOO_LARGE"),
    slow_case("over the limit, not declared, endless", endless, 413, "PAYLOAD_TOO_LARGE"),
    case("a length below the size of the body", SHORT, 400, BY_SERVER, haproxy=(400, "INVALID_REQUEST")),
    case("a length above the size of the body", head(INFER, b"Content-Length: 1000") + GOOD, 408, "BODY_TIMEOUT"),
    slow_case("a body sent byte by byte", byte_by_byte, 408, "BODY_TIMEOUT"),
    case("Transfer-Encoding: gzip", head(INFER, b"Transfer-Encoding: gzip") + gzip.compress(GOOD), 400, BY_SERVER),
    case("a negative length", head(INFER, b"Content-Length: -1") + GOOD, 400, BY_SERVER),
    case("a length that is no number", head(INFER, b"Content-Length: 0x10") + GOOD, 400, BY_SERVER),
    case("a length over 64 bits", head(INFER, b"Content-Length: " + b"9" * 30) + GOOD, 400, BY_SERVER),
    case("two lengths", whole(INFER, GOOD, b"Content-Length: 1"), 400, BY_SERVER),
    case("a length and chunks", BOTH_LENGTHS, 400, BY_SERVER, haproxy=(200, ACCEPTED)),
    case("a chunk size that is no number", head(INFER, b"Transfer-Encoding: chunked") + b"zz\r\n", 400, BY_SERVER),
    case("a chunk size over 64 bits", head(INFER, b"Transfer-Encoding: chunked") + b"f" * 20 + b"\r\n", 400, BY_SERVER),
]  # fmt: skip

TIMEOUT = b"X-Request-Timeout-Ms: "
TIMEOUTS = [
    case(f"X-Request-Timeout-Ms: {value[:9]!r}", whole(INFER, GOOD, TIMEOUT + value), 400, "INVALID_REQUEST")
    for value in [b"", b"0", b"-1", b"1e3", b"1.5", b"NaN", b"\xb2", b"9" * 5000]
]
UPGRADE = [b"Connection: Upgrade", b"Upgrade: h2c"]
TOKENS = [b"Authorization: Bearer \xff", b"Authorization: x"]
HEADERS = [
    *(
        case(name, whole(INFER, GOOD, *lines), haproxy=REFUSED_BY_HAPROXY, own=TOO_LARGE)
        for name, lines in [
            ("a header of 1 MB", [b"X-Long: " + b"x" * MIB]),
            ("a header of 8 MB", [b"X-Long: " + b"x" * 8 * MIB]),
            ("10,000 headers", [b"X-%d: x" % n for n in range(10_000)]),
            ("serve-multiplexed-model-id of 64 kB", [b"serve-multiplexed-model-id: " + b"x" * 65536]),
            ("X-Correlation-ID of 1 MB", [b"X-Correlation-ID: " + b"x" * MIB]),
        ]
    ),
    case("60 kB", whole(INFER, GOOD, b"x-request-id: " + b"x" * 60_000), haproxy=REFUSED_BY_HAPROXY),
    case("a header name with a space", whole(INFER, GOOD, b"X Y: x"), 400, BY_SERVER),
    case("a header without a colon", whole(INFER, GOOD, b"nothing"), 400, BY_SERVER),
    case("a NUL in a header", whole(INFER, GOOD, b"X-A: \0"), 400, BY_SERVER),
    # Behind HAProxy authentication is on, and the valid token is sent before these.
    case("two more tokens", whole(INFER, GOOD, *TOKENS), haproxy=(401, "INVALID_API_KEY")),
    case("serve_multiplexed_model_id", whole(INFER, GOOD, b"serve_multiplexed_model_id: nobody")),
    case("x-session-id", whole(INFER, GOOD, b"x-session-id: nobody")),
    case("Ray's own time limit", whole(INFER, GOOD, b"x-request-timeout-seconds: 1e-9")),
    case("Ray's own switch", whole(INFER, GOOD, b"x-request-disconnect-disabled: ?1")),
    # uvicorn's parser treats the rest as another protocol, so there is no body. HAProxy removes the header; so do we.
    case("Upgrade", whole(INFER, GOOD, *UPGRADE), 400, "INVALID_REQUEST", haproxy=(200, ACCEPTED), own=(200, ACCEPTED)),
    # Ray decodes these as UTF-8 before it calls us, and would respond with 500.
    *(
        case(f"{name.decode()} with a byte over 127", whole(INFER, GOOD, name + b": \xff"))
        for name in [
            b"x-request-id",
            b"x-session-id",
            b"serve_multiplexed_model_id",
            b"x-request-timeout-seconds",
            b"x-request-disconnect-disabled",
        ]
    ),
]  # fmt: skip

SERVER = [*HOSTS, *ORIGINS, *PATHS, *METHODS, *SIZES, *HEADERS]
"""What an HTTP server before the ingress may treat in its own way."""
APPLICATION = [*TYPES, *TIMEOUTS]
"""What every HTTP server forwards, so that only the ingress application decides."""

GARBAGE_IDS = [
    b"",
    b" ",
    b"a b",
    b"a/b",
    b"../../etc/passwd",
    b"a\tb",
    b"\xff\xfe",
    "é".encode(),
    b"{{7*7}}",
    b"%0aSet-Cookie: a=b",
    b"<script>",
    b"x" * 129,
]
