"""The fake hive: its validation, its log, and how it misbehaves."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from rbee_serve.hub.orchestrator.fake_hive import FakeHive, main
from tests.certificates import Authority
from tests.hub.examples import Clock
from tests.hub.receivers import closed_port, eventually, quiet_hive, running

READY: dict[str, Any] = {
    "worker_id": "llm-1",
    "url": "http://box:8000/workers/llm-1",
    "model_ref": "hf:org/model",
    "backend": "cuda",
    "device": 0,
    "vram_bytes": 3_100_000_000,
    "port": 8000,
    "worker_type": "llm",
    "boot_id": "boot-a",
}
BEAT: dict[str, Any] = {"worker_id": "llm-1", "timestamp": "2026-01-31T12:00:00Z", "health_status": "healthy"}
INFO: dict[str, Any] = {
    "id": "llm-1",
    "model_id": "model",
    "device": "GPU-0",
    "port": 8000,
    "status": "busy",
    "implementation": "rbee-serve/llm",
    "version": "0.1.0",
}
QUEEN: dict[str, Any] = {"worker": INFO, "timestamp": "2026-01-31T12:00:00.5+00:00"}
FAILURE: dict[str, Any] = {
    "worker_id": "llm-1",
    "worker_type": "llm",
    "model_ref": "hf:org/model",
    "boot_id": "boot-a",
    "code": "INTERNAL",
    "message": "no weights",
    "timestamp": "2026-01-31T12:00:00Z",
}
PATHS = {
    "ready": ("/v1/workers/ready", READY),
    "beat": ("/v1/heartbeat", BEAT),
    "queen": ("/v1/worker-heartbeat", QUEEN),
    "failure": ("/v1/workers/error", FAILURE),
}


def send(hive: FakeHive, kind: str, **changes: Any) -> int:
    path, message = PATHS[kind]
    return hive.receive(path, json.dumps({**message, **changes}).encode()).status


def test_each_message_is_a_line_with_the_time_since_the_last_one() -> None:
    lines: list[str] = []
    hive = FakeHive(log=lines.append, clock=(clock := Clock()))
    send(hive, "ready")
    clock.now += 30
    send(hive, "beat", health_status="degraded")
    clock.now += 29.5
    send(hive, "queen")
    send(hive, "failure")
    send(hive, "beat", worker_id="somebody")
    assert lines == [
        "llm-1  ready on cuda:0 with 3.1 GB at http://box:8000/workers/llm-1",
        "llm-1  degraded, 30.0 s after the last message",
        "llm-1  busy, 29.5 s after the last message",
        "llm-1  LOAD FAILED  INTERNAL: 'no weights'",
        "somebody  healthy, but UNKNOWN here: responding with 404",
    ]


def test_a_worker_that_is_silent_for_90_seconds_is_logged_once() -> None:
    lines: list[str] = []
    hive = FakeHive(log=lines.append, clock=(clock := Clock()))
    send(hive, "ready")
    for seconds in (90, 1, 60):
        clock.now += seconds
        hive.check_silence()
    assert lines[1:] == ["llm-1  SILENT for 91 s: a hive would drop it now"]
    send(hive, "beat")
    clock.now += 91
    hive.check_silence()
    assert lines[-1] == "llm-1  SILENT for 91 s: a hive would drop it now"


@pytest.mark.parametrize("kind", PATHS)
def test_a_valid_message_is_accepted(kind: str) -> None:
    hive = quiet_hive()
    send(hive, "ready")
    assert send(hive, kind, something_new=1) == 200


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("ready", "worker_id", "llm 1"),
        ("ready", "worker_id", "x" * 257),
        ("ready", "backend", "x" * 65),
        ("ready", "backend", "cuda\n"),
        ("ready", "url", "ftp://box/workers/llm-1"),
        ("ready", "url", "http://box:8000/workers/llm-2"),
        ("ready", "device", "0"),
        ("ready", "device", True),
        ("ready", "vram_bytes", 1.0),
        ("ready", "vram_bytes", -1),
        ("ready", "vram_source", "guess"),
        ("ready", "nodes", ["10.0.0.1", 2]),
        ("ready", "port", 65536),
        ("ready", "model_ref", None),
        ("ready", "boot_id", ""),
        ("beat", "timestamp", "2026-01-31T12:00:00"),
        ("beat", "timestamp", "2026-01-31T12:00:00+02:00"),
        ("beat", "timestamp", "2026-02-31T12:00:00Z"),
        ("beat", "timestamp", 1769860800),
        ("beat", "health_status", "fine"),
        ("queen", "worker", {**INFO, "device": "cuda:0"}),
        ("queen", "worker", {**INFO, "status": "idle"}),
        ("failure", "message", ""),
    ],
)
def test_an_invalid_field_is_named_and_is_a_400(kind: str, field: str, value: object) -> None:
    lines: list[str] = []
    hive = FakeHive(log=lines.append)
    assert send(hive, kind, **{field: value}) == 400
    assert lines[0].startswith(f"WRONG  {PATHS[kind][0]}  ")
    assert field in lines[0]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"worker_id": NaN}'])
def test_a_body_that_is_no_message_is_a_400(body: bytes) -> None:
    assert quiet_hive().receive("/v1/heartbeat", body).status == 400


def test_forget_after_drops_a_worker_until_its_next_ready() -> None:
    hive = quiet_hive(forget_after=2)
    assert [send(hive, kind) for kind in ("ready", "beat", "beat", "beat", "ready", "beat")] == [
        *[200, 200, 200, 404],
        *[200, 200],
    ]


def test_status_is_the_response_to_every_message() -> None:
    hive = quiet_hive(status=503)
    assert [send(hive, "ready"), send(hive, "beat")] == [503, 503]


def test_over_http_a_response_is_delayed_and_lists_the_faults() -> None:
    hive = quiet_hive(delay_s=0.2)
    with running(hive) as url, httpx.Client(base_url=url) as client:
        answer = client.post("/v1/heartbeat", json={**BEAT, "worker_id": ""})
        assert (answer.status_code, len(answer.json()["errors"])) == (400, 1)
        assert answer.elapsed.total_seconds() >= 0.2
        assert client.get("/v1/heartbeat").status_code == 405
        assert client.post("/v2").status_code == 404


def test_with_a_token_a_call_without_it_is_a_401_with_the_codes_of_the_protocol() -> None:
    hive = quiet_hive(token=lambda: b"a-token")
    with running(hive) as url, httpx.Client(base_url=url) as client:

        def refused(*headers: tuple[str, str]) -> tuple[int, str | None]:
            answer = client.post("/v1/workers/ready", json=READY, headers=list(headers))
            return answer.status_code, answer.json().get("error", {}).get("code")

        assert refused() == (401, "MISSING_API_KEY")
        assert refused(("authorization", "Bearer another")) == (401, "INVALID_API_KEY")
        assert refused(("authorization", "Basic a-token")) == (401, "INVALID_API_KEY")
        assert refused(("authorization", "Bearer a-token"), ("authorization", "Bearer a-token")) == (
            401,
            "INVALID_API_KEY",
        )
        assert hive.messages == []
        assert refused(("authorization", "bearer a-token")) == (200, None)


def test_with_a_token_file_and_a_certificate_it_runs_from_the_command_line(tmp_path: Path) -> None:
    authority, port = Authority(tmp_path), closed_port()
    (tmp_path / "token").write_text("a-token\n")
    flags = ["--token-file", str(tmp_path / "token"), "--tls-cert", str(authority.issue())]
    command = [sys.executable, "-m", "rbee_serve.hub.orchestrator.fake_hive", "--port", str(port), *flags]
    trusted = ssl.create_default_context(cafile=authority.file)

    def refuses() -> bool:
        try:
            return httpx.post(f"https://127.0.0.1:{port}/v1/heartbeat", json=BEAT, verify=trusted).status_code == 401
        except httpx.TransportError:
            return False

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            eventually(refuses, 30)
        finally:
            process.terminate()
        output, _ = process.communicate()
    first, second = output.splitlines()[:2]
    assert first.endswith(f"callback_url: https://127.0.0.1:{port}/v1/workers/ready")
    assert second.endswith("REFUSED  /v1/heartbeat  MISSING_API_KEY")


def test_an_empty_token_file_ends_it_with_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "token").touch()
    with pytest.raises(SystemExit):
        main(["--token-file", str(tmp_path / "token")])
    assert "error: --token-file: the first line of " in capsys.readouterr().err


def test_it_runs_from_the_command_line() -> None:
    port = closed_port()
    command = [sys.executable, "-m", "rbee_serve.hub.orchestrator.fake_hive", "--port", str(port), "--status", "503"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            eventually(responds_with_503(f"http://127.0.0.1:{port}/v1/workers/ready"), 30)
        finally:
            process.terminate()
        output, _ = process.communicate()
    first, second = output.splitlines()[:2]
    assert first.endswith(f"callback_url: http://127.0.0.1:{port}/v1/workers/ready")
    assert second.endswith("llm-1  ready on cuda:0 with 3.1 GB at http://box:8000/workers/llm-1")


def responds_with_503(url: str) -> Callable[[], bool]:
    def post() -> bool:
        try:
            return httpx.post(url, json=READY).status_code == 503
        except httpx.TransportError:
            return False

    return post
