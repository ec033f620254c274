"""The stand-in hive: strict, readable, and able to misbehave."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from rbee_serve.hub.orchestrator.fake_hive import FakeHive
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


def tell(hive: FakeHive, kind: str, **changes: Any) -> int:
    path, message = PATHS[kind]
    return hive.receive(path, json.dumps({**message, **changes}).encode()).status


def test_it_says_a_line_for_each_message_with_the_time_since_the_last_beat() -> None:
    lines: list[str] = []
    hive = FakeHive(say=lines.append, clock=(clock := Clock()))
    tell(hive, "ready")
    clock.now += 30
    tell(hive, "beat", health_status="degraded")
    clock.now += 29.5
    tell(hive, "queen")
    tell(hive, "failure")
    tell(hive, "beat", worker_id="somebody")
    assert lines == [
        "llm-1  ready on cuda:0 with 3.1 GB at http://box:8000/workers/llm-1",
        "llm-1  degraded, 30.0 s after the last",
        "llm-1  busy, 29.5 s after the last",
        "llm-1  LOAD FAILED  INTERNAL: 'no weights'",
        "somebody  healthy, but UNKNOWN here: answering 404",
    ]


def test_it_says_once_that_a_worker_has_been_silent_for_90_seconds() -> None:
    lines: list[str] = []
    hive = FakeHive(say=lines.append, clock=(clock := Clock()))
    tell(hive, "ready")
    for seconds in (90, 1, 60):
        clock.now += seconds
        hive.watch()
    assert lines[1:] == ["llm-1  SILENT for 91 s: a hive would give it up now"]
    tell(hive, "beat")
    clock.now += 91
    hive.watch()
    assert lines[-1] == "llm-1  SILENT for 91 s: a hive would give it up now"


@pytest.mark.parametrize("kind", PATHS)
def test_a_right_message_is_taken(kind: str) -> None:
    hive = quiet_hive()
    tell(hive, "ready")
    assert tell(hive, kind, something_new=1) == 200


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
def test_a_wrong_field_is_named_and_answered_with_400(kind: str, field: str, value: object) -> None:
    lines: list[str] = []
    hive = FakeHive(say=lines.append)
    assert tell(hive, kind, **{field: value}) == 400
    assert lines[0].startswith(f"WRONG  {PATHS[kind][0]}  ")
    assert field in lines[0]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"worker_id": NaN}'])
def test_what_is_no_message_at_all_is_answered_with_400(body: bytes) -> None:
    assert quiet_hive().receive("/v1/heartbeat", body).status == 400


def test_it_forgets_a_worker_when_asked_to_and_knows_it_again_after_ready() -> None:
    hive = quiet_hive(forget_after=2)
    assert [tell(hive, kind) for kind in ("ready", "beat", "beat", "beat", "ready", "beat")] == [
        *[200, 200, 200, 404],
        *[200, 200],
    ]


def test_it_answers_everything_with_one_status_when_asked_to() -> None:
    hive = quiet_hive(status=503)
    assert [tell(hive, "ready"), tell(hive, "beat")] == [503, 503]


def test_over_http_it_answers_late_when_asked_to_and_says_what_was_wrong() -> None:
    hive = quiet_hive(delay_s=0.2)
    with running(hive) as url, httpx.Client(base_url=url) as client:
        answer = client.post("/v1/heartbeat", json={**BEAT, "worker_id": ""})
        assert (answer.status_code, len(answer.json()["errors"])) == (400, 1)
        assert answer.elapsed.total_seconds() >= 0.2
        assert client.get("/v1/heartbeat").status_code == 405
        assert client.post("/v2").status_code == 404


def test_it_runs_from_the_command_line() -> None:
    port = closed_port()
    command = [sys.executable, "-m", "rbee_serve.hub.orchestrator.fake_hive", "--port", str(port), "--status", "503"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            eventually(answers_503(f"http://127.0.0.1:{port}/v1/workers/ready"), 30)
        finally:
            process.terminate()
        redacted, _ = process.communicate()
    first, second = redacted.splitlines()[:2]
    assert first.endswith(f"callback_url: http://127.0.0.1:{port}/v1/workers/ready")
    assert second.endswith("llm-1  ready on cuda:0 with 3.1 GB at http://box:8000/workers/llm-1")


def answers_503(url: str) -> Callable[[], bool]:
    def ask() -> bool:
        try:
            return httpx.post(url, json=READY).status_code == 503
        except httpx.TransportError:
            return False

    return ask
