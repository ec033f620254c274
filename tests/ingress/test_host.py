"""Which names of a server a request may have in its Host."""

from __future__ import annotations

import pytest

from rbee_serve.errors import ConfigurationError
from rbee_serve.ingress.host import host_name, is_loopback
from tests.ingress.application import application, serving
from tests.ingress.origin_servers import INFER, READY, TOKEN, code
from tests.raw_http import exchange, head


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "localhost:8000", "LocalHost", "localhost.", "localhost.:8000", "localhost:", "127.0.0.1",
        "127.0.0.1:65535", "127.255.0.9", "127.1", "0x7f.1", "2130706433", "[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]", "app.localhost", "a.b.LOCALHOST.", "box.example", "BOX.example:8443", "box.example.:80",
    ],
)  # fmt: skip
def test_loopback_names_and_the_public_host_are_served_in_every_spelling(open_url: str, host: str) -> None:
    assert exchange(open_url, head(READY, method=b"GET", host=host.encode())).status == 200


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
def test_other_hosts_are_refused_before_any_work(open_url: str, host: str) -> None:
    for request in (
        head(READY, method=b"GET", host=host.encode("latin-1")),
        head("/health", method=b"GET", host=host.encode("latin-1")),
        head("/", method=b"GET", host=host.encode("latin-1")),
        head(INFER, b"Content-Length: 1000", host=host.encode("latin-1")),  # the body never comes
    ):
        response = exchange(open_url, request)
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


def test_several_hosts_are_refused(open_url: str) -> None:
    for hosts in ([b"Host: localhost", b"Host: localhost"], [b"Host: localhost", b"Host: evil.example"]):
        response = exchange(open_url, head(READY, *hosts, method=b"GET", host=None))
        assert response.status in (400, 421)


def test_http_1_0_needs_no_host(open_url: str) -> None:
    old = head(READY, method=b"GET", host=None).replace(b"HTTP/1.1", b"HTTP/1.0")
    assert exchange(open_url, old).status == 200
    assert exchange(open_url, head(READY, method=b"GET", host=None)).status in (400, 421)
    evil = head(READY, method=b"GET", host=b"evil.example").replace(b"HTTP/1.1", b"HTTP/1.0")
    assert exchange(open_url, evil).status == 421


def test_a_url_as_the_target_does_not_replace_the_host(open_url: str) -> None:
    response = exchange(open_url, head(f"http://localhost{READY}", method=b"GET", host=b"evil.example"))
    assert response.status == 421


def test_headers_of_proxies_do_not_replace_the_host(open_url: str) -> None:
    lines = [b"X-Forwarded-Host: localhost", b"Forwarded: host=localhost", b"X-Host: localhost"]
    assert exchange(open_url, head(READY, *lines, method=b"GET", host=b"evil.example")).status == 421


def test_with_a_token_every_host_is_served(url_with_token: str) -> None:
    allowed = b"Authorization: Bearer " + TOKEN
    for host in (b"evil.example", b"10.0.0.7:8000", b"pod-7"):
        assert exchange(url_with_token, head(READY, allowed, method=b"GET", host=host)).status == 200
        assert exchange(url_with_token, head("/health", method=b"GET", host=host)).status == 200


@pytest.mark.parametrize("url", ["http://[::1", "http://a@box", "http://box:99999", "http://box?x"])
def test_a_public_url_without_a_host_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^public_url: must be a scheme"):
        application(None, public_url=url)
