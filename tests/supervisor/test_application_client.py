"""How the supervisor verifies the server's certificate beside its bearer token."""

from __future__ import annotations

import ssl
import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from rbee_serve.supervisor.application_client import _verification
from tests.supervisor.application import checked_for


def create_certificate(folder: Path) -> Path:
    path = folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=public.example", "-days", "2"]
    subprocess.run([*command, "-keyout", folder / "key.pem", "-out", path], check=True, capture_output=True)
    return path


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return create_certificate(tmp_path)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_on_the_loopback_interface_the_certificate_is_not_verified(host: str, certificate: Path) -> None:
    checked = checked_for(f"https://{host}:8000", 8000)
    document = {"http_options": {"ssl_certfile": str(certificate)}}
    assert _verification(replace(checked, document=document)) is False


def test_at_any_other_address_it_must_be_the_configured_certificate(certificate: Path, tmp_path: Path) -> None:
    checked = checked_for("https://192.0.2.1:8000", 8000)
    document = {"http_options": {"ssl_certfile": str(certificate)}}
    context = _verification(replace(checked, document=document))
    assert isinstance(context, ssl.SSLContext)
    handshake(context, certificate)
    (tmp_path / "other").mkdir()
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(context, create_certificate(tmp_path / "other"))


def handshake(context: ssl.SSLContext, certificate: Path) -> None:
    """A TLS handshake in memory with a server of that certificate."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(to_client, to_server, server_hostname="192.0.2.1")
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    client.do_handshake()


def test_without_tls_nothing_is_unverified() -> None:
    assert _verification(checked_for("http://127.0.0.1:8000", 8000)) is True
