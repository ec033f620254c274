"""TLS of the ingress's own listener."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from rbee_serve.config import LimitsConfig, TlsConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.ingress.http_server.certificate import ServedCertificate
from rbee_serve.ingress.listener import Address, Listener
from tests.conftest import free_port
from tests.ingress.certificates import make_certificate
from tests.ingress.hostile import Attacked, attacked, closed
from tests.served.measured import measured


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def tls(folder: Path) -> dict[str, str]:
    return make_certificate(folder)


@pytest.fixture(scope="module")
def server(tls: dict[str, str]) -> Iterator[Attacked]:
    with attacked({"header_timeout_s": 1}, tls) as server:
        yield server


def trusting(tls: dict[str, str]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=tls["cert_file"])


def test_a_client_that_trusts_the_certificate_is_served(server: Attacked, tls: dict[str, str]) -> None:
    with httpx.Client(base_url=f"https://localhost:{server.port}", verify=trusting(tls)) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/large", timeout=30).status_code == 200
        assert client.get("/three").text.count("data: ") == 3


def test_a_client_that_does_not_trust_it_refuses(server: Attacked) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://localhost:{server.port}/health")


def test_plain_http_and_old_tls_are_refused(server: Attacked, tls: dict[str, str]) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"http://localhost:{server.port}/health")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old = _only(trusting(tls), ssl.TLSVersion.TLSv1_1)
    with server.connect() as connection, pytest.raises(ssl.SSLError):
        old.wrap_socket(connection, server_hostname="localhost")


def _only(context: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    context.minimum_version = context.maximum_version = version
    return context


def test_headers_are_bounded_and_refused_in_tls_too(server: Attacked, tls: dict[str, str]) -> None:
    with httpx.Client(base_url=f"https://localhost:{server.port}", verify=trusting(tls)) as client:
        assert client.get("/health", headers={"X-Long": "x" * 70_000}).status_code == 431


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "a part of a hello"])
def test_a_thousand_unfinished_handshakes_delay_nobody_and_end_in_time(
    server: Attacked, tls: dict[str, str], sent: bytes
) -> None:
    context = trusting(tls)
    alone = min(first_byte_s(server, context) for _ in range(5))
    with ExitStack() as stack:
        began = time.monotonic()
        slow = server.connections(1000, sent, stack)
        delayed = min(first_byte_s(server, context) for _ in range(5)) - alone
        measured("1,000 unfinished handshakes", "delay of another client's first byte", max(0.0, delayed), 0.05)
        assert closed(slow, 10) == 1000
        measured("1,000 unfinished handshakes", "all are closed", time.monotonic() - began, 4.0)


def test_unfinished_handshakes_count_as_connections(tls: dict[str, str]) -> None:
    with attacked({"max_connections": 10, "header_timeout_s": 60}, tls) as server, ExitStack() as stack:
        server.connections(10, b"", stack)
        time.sleep(0.3)
        with httpx.Client(base_url=f"https://localhost:{server.port}", verify=trusting(tls)) as client:
            assert client.get("/v1/workers").status_code == 503
            assert client.get("/health").status_code == 200


def first_byte_s(server: Attacked, context: ssl.SSLContext) -> float:
    began = time.monotonic()
    with server.connect() as connection, context.wrap_socket(connection, server_hostname="localhost") as secured:
        secured.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert secured.recv(12) == b"HTTP/1.1 200"
    return time.monotonic() - began


def served_serial(server: Attacked) -> str:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", server.port)) as connection, context.wrap_socket(connection) as secured:
        certificate = secured.getpeercert(binary_form=True)
        assert certificate
        return ssl.DER_cert_to_PEM_cert(certificate)


def test_a_renewed_certificate_is_served_without_a_restart_and_a_broken_one_is_not(tmp_path: Path) -> None:
    tls, renewed = make_certificate(tmp_path), make_certificate(tmp_path, "renewed")
    with attacked(tls=tls) as server:
        first = served_serial(server)
        Path(tls["cert_file"]).write_text("no certificate")
        time.sleep(1.5)
        assert served_serial(server) == first
        for key in tls:
            shutil.copyfile(renewed[key], tls[key])
        deadline = time.monotonic() + 5
        while served_serial(server) == first and time.monotonic() < deadline:
            time.sleep(0.1)
        assert served_serial(server) == Path(renewed["cert_file"]).read_text()


def test_a_file_that_is_removed_while_it_is_read_is_a_fault_of_the_configuration(
    tls: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_check_pem", "_check_validity"):
        monkeypatch.setattr(f"rbee_serve.config.tls.{name}", lambda *args: None)
    for key in tls:
        assert "gone" in refused(**{**tls, key: "/gone"})


async def test_a_fault_of_the_certificate_does_not_end_the_time_limits(
    tls: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TlsConfig.model_validate(tls)
    address = Address("127.0.0.1", free_port())
    monkeypatch.setattr(ServedCertificate, "refresh", lambda self: 1 / 0)
    listener = Listener(lambda *_: None, address, LimitsConfig(header_timeout_s=0.4), config)  # type: ignore[arg-type]
    reader, writer = await asyncio.open_connection(
        address.host, address.port, ssl=trusting(tls), server_hostname="localhost"
    )
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    await listener.close(1)


def test_a_key_file_that_becomes_readable_is_used(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch(0o000)
    loads: list[int] = []
    certificate = ServedCertificate([file], lambda: loads.append(1))  # type: ignore[arg-type, return-value]
    file.chmod(0o600)
    certificate.refresh()
    certificate.refresh()
    assert len(loads) == 2


def refused(**values: str | Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        TlsConfig.model_validate(values).context()
    return str(caught.value)


def test_what_no_client_could_accept_is_refused_with_its_path(folder: Path, tls: dict[str, str]) -> None:
    other, old = make_certificate(folder, "other"), make_certificate(folder, "old", days=-1)
    empty, missing = folder / "empty", folder / "missing"
    empty.write_text("")
    cert, key = tls["cert_file"], tls["key_file"]
    assert TlsConfig.model_validate(tls).context().minimum_version == ssl.TLSVersion.TLSv1_2
    assert refused(cert_file=missing, key_file=key) == (
        f"tls.cert_file: {missing} cannot be read: No such file or directory"
    )
    assert refused(cert_file=folder, key_file=key) == f"tls.cert_file: {folder} cannot be read: Is a directory"
    assert f"tls.cert_file: {empty} has no PEM block" in refused(cert_file=empty, key_file=key)
    assert f"tls.key_file: {empty} has no PEM block" in refused(cert_file=cert, key_file=empty)
    assert f"tls.cert_file: {key} has no PEM block" in refused(cert_file=key, key_file=cert)
    assert refused(cert_file=cert, key_file=other["key_file"]) == (
        f"tls.key_file: {other['key_file']} is not the key of the certificate in {cert}"
    )
    assert refused(cert_file=old["cert_file"], key_file=old["key_file"]) == (
        f"tls.cert_file: {old['cert_file']} has expired; renew the certificate"
    )
    early = make_certificate(folder, "early", days=100)
    assert "is not valid yet" in refused(**early)


def test_a_key_with_a_passphrase_and_a_cut_file_are_refused(folder: Path, tls: dict[str, str]) -> None:
    locked, cut = make_certificate(folder, "locked", passphrase=b"secret"), folder / "cut.pem"
    cut.write_text(Path(tls["cert_file"]).read_text()[:300])
    assert "has a passphrase" in refused(**locked)
    assert "are not a PEM certificate and its key" in refused(cert_file=cut, key_file=tls["key_file"])
