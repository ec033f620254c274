"""`tls:` in a configuration: what is checked before the start, and a server that uses it."""

from __future__ import annotations

import ssl
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from rbee_serve.errors import ConfigurationError
from rbee_serve.supervisor.application_client import _verification
from rbee_serve.supervisor.checks import check_file
from rbee_serve.supervisor.environment import with_proxy_location
from tests.conftest import ECHO as ECHO_WORKER
from tests.ingress.certificates import make_certificate
from tests.ingress.hostile import attacked
from tests.supervised import supervisor
from tests.supervisor.configurations import ECHO, written


def with_tls(folder: Path, tls: dict[str, str], http: str = "", top: str = "") -> Path:
    """The echo configuration with `tls:`, further HTTP options and further keys at the top."""
    section = "    args:\n      tls: " + str(tls).replace("'", '"') + "\n"
    text = ECHO.replace("    args:\n", section).replace("  port: 8000\n", "  port: 8000\n" + http)
    return written(folder, top + text)


def refused(path: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        check_file(path)
    return str(caught.value)


def test_the_url_of_the_server_is_https(tmp_path: Path) -> None:
    assert check_file(with_tls(tmp_path, make_certificate(tmp_path))).base_url == "https://127.0.0.1:8000"


def test_a_certificate_that_cannot_be_served_is_refused_with_its_line(tmp_path: Path) -> None:
    tls = make_certificate(tmp_path, days=-1)
    path = with_tls(tmp_path, tls)
    sentence = f"{tls['cert_file']} has expired; renew the certificate"
    assert refused(path) == f"{path}:9: applications[0].args.tls.cert_file: {sentence}"


def test_two_certificates_are_refused(tmp_path: Path) -> None:
    tls = make_certificate(tmp_path)
    path = with_tls(tmp_path, tls, http=f"  ssl_certfile: {tls['cert_file']}\n  ssl_keyfile: {tls['key_file']}\n")
    assert refused(path) == (
        f"{path}:11: applications[0].args.tls: http_options.ssl_certfile names a certificate too; remove one of the two"
    )


def test_the_certificate_of_the_http_options_is_checked_too(tmp_path: Path) -> None:
    tls = make_certificate(tmp_path)
    options = f"  ssl_certfile: {tls['cert_file']}\n"
    fitting = f"  ssl_keyfile: {tls['key_file']}\n"
    path = written(tmp_path, ECHO.replace("  port: 8000\n", "  port: 8000\n" + options + fitting))
    assert check_file(path).base_url == "https://127.0.0.1:8000"
    path = written(tmp_path, ECHO.replace("  port: 8000\n", "  port: 8000\n" + options + "  ssl_keyfile: /none\n"))
    assert "http_options.ssl_certfile: " in refused(path)
    assert "No such file or directory" in refused(path)
    path = written(tmp_path, ECHO.replace("  port: 8000\n", "  port: 8000\n" + fitting))
    assert "http_options.ssl_keyfile: " in refused(path)


def test_it_is_refused_where_a_proxy_of_ray_listens(tmp_path: Path) -> None:
    tls = make_certificate(tmp_path)
    assert "Ray's proxy listens here" in refused(with_tls(tmp_path, tls, top="proxy_location: HeadOnly\n"))
    checked = check_file(with_tls(tmp_path, tls))
    assert with_proxy_location(checked, {}).document["proxy_location"] == "Disabled"
    with pytest.raises(ConfigurationError, match="Ray's proxy listens here"):
        with_proxy_location(checked, {"RAY_SERVE_ENABLE_HA_PROXY": "1"})
    with pytest.raises(ConfigurationError, match="Ray's proxy listens here"):
        with_proxy_location(replace(checked, needs_proxies=True), {})


def test_the_supervisors_client_accepts_a_renewed_certificate_and_no_other(tmp_path: Path) -> None:
    tls = make_certificate(tmp_path)
    checked = check_file(with_tls(tmp_path, tls))
    for key, path in make_certificate(tmp_path, "first").items():
        Path(tls[key]).write_bytes(Path(path).read_bytes())
    with attacked(tls=tls) as server:
        pinned = replace(checked, base_url=f"https://192.0.2.1:{server.port}")
        context = _verification(pinned)
        assert isinstance(context, ssl.SSLContext)
        with httpx.Client(base_url=f"https://127.0.0.1:{server.port}", verify=context) as client:
            assert client.get("/health").status_code == 200
        for key, path in make_certificate(tmp_path, "second").items():
            Path(tls[key]).write_bytes(Path(path).read_bytes())
        time.sleep(1.5)
        with httpx.Client(base_url=f"https://127.0.0.1:{server.port}", verify=context) as client:
            assert client.get("/health").status_code == 200
    other = make_certificate(tmp_path, "other")
    with (
        attacked(tls=other) as server,
        httpx.Client(base_url=f"https://127.0.0.1:{server.port}", verify=context) as client,
        pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        client.get("/health")


@pytest.mark.ray
def test_a_supervised_server_is_reached_by_https_only(tmp_path: Path) -> None:
    tls = make_certificate(tmp_path)
    with supervisor(tmp_path, [{"id": "echo-0", **ECHO_WORKER}], tls=tls) as running:
        running.until("Ctrl+C stops it")
        assert "serving on https://" in running.output()
        url = running.url.replace("http://", "https://")
        with httpx.Client(base_url=url, verify=ssl.create_default_context(cafile=tls["cert_file"])) as client:
            response = client.post("/workers/echo-0/v1/inference", json={"prompt": "a b", "stream": False})
            assert response.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(running.url)
