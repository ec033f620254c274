"""Callbacks over TLS: which certificates of an orchestrator are trusted."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbee_serve.errors import ConfigurationError
from rbee_serve.hub.orchestrator.callback_client import CallbackClient, CallbackResult
from tests.certificates import Authority
from tests.hub.callbacks import LOAD_FAILURE, configured, post, post_with
from tests.hub.receivers import quiet_hive, running


def https(certificate: Path, ca_file: Path | None) -> CallbackResult:
    with running(quiet_hive(), certificate) as url:
        return post(configured(url, ca_file=ca_file), f"{url}/v1/workers/error", LOAD_FAILURE)


def test_an_authority_of_ones_own_is_trusted_where_it_is_configured(tmp_path: Path) -> None:
    root = Authority(tmp_path)
    assert https(root.issue(), root.file).acknowledged
    assert https(Authority(tmp_path, "intermediate", root).issue(), root.file).acknowledged


@pytest.mark.parametrize(
    ("host", "days", "trusted", "detail"),
    [
        ("127.0.0.1", 1.0, "no file", "self-signed certificate|unable to get local issuer certificate"),
        ("127.0.0.1", 1.0, "another", "self-signed certificate|unable to get local issuer certificate"),
        ("hive.example", 1.0, "its own", "IP address mismatch"),
        ("127.0.0.2", 1.0, "its own", "IP address mismatch"),
        ("127.0.0.1", -1.0, "its own", "certificate has expired"),
    ],
)
def test_a_certificate_that_cannot_be_verified_gets_no_message(
    host: str, days: float, trusted: str, detail: str, tmp_path: Path
) -> None:
    authority, another = Authority(tmp_path), Authority(tmp_path, "another authority")
    ca_file = {"no file": None, "another": another.file, "its own": authority.file}[trusted]
    hive = quiet_hive()
    with running(hive, authority.issue(host, days)) as url:
        result = post(configured(url, ca_file=ca_file), f"{url}/v1/workers/error", LOAD_FAILURE)
    assert (result.failure, hive.messages) == ("untrusted certificate", [])
    assert any(part in result.detail for part in detail.split("|")), result.detail


def test_a_replaced_authority_counts_from_the_next_call_on(tmp_path: Path) -> None:
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(old.file.read_bytes())
    with running(quiet_hive(), new.issue()) as url:
        client = CallbackClient(configured(url, ca_file=ca_file))
        assert post_with(client, f"{url}/v1/workers/error", LOAD_FAILURE).failure == "untrusted certificate"
        ca_file.write_bytes("# Főtanúsítvány\n".encode() + old.file.read_bytes() + new.file.read_bytes())
        assert post_with(client, f"{url}/v1/workers/error", LOAD_FAILURE).acknowledged


@pytest.mark.parametrize("content", [b"", b"no certificate", b"\x30\x82\x00\x00", b"-----BEGIN CERTIFICATE-----\nAA\n"])
def test_a_file_without_certificates_is_refused_with_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError) as raised:
        configured("https://hive", ca_file=path).check()
    assert str(raised.value) == (
        f"orchestrator.ca_file: {path} has no certificate in PEM form that can be read; it begins with "
        "BEGIN CERTIFICATE"
    )


def test_an_authority_for_plain_http_is_refused_and_all_faults_are_told_at_once(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with pytest.raises(ConfigurationError) as raised:
        configured("http://hive", ca_file=authority.file, token_file=tmp_path / "missing").check()
    assert [line.partition(":")[0] for line in str(raised.value).splitlines()] == [
        "orchestrator.token_file",
        "orchestrator.ca_file",
    ]
    configured("http://hive", ca_file=authority.file, on_error_url="https://errors").check()
