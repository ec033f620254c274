"""Every message as JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from rbee_serve.config import OrchestratorConfig, WorkerConfig
from rbee_serve.hub.orchestrator.heartbeat import (
    HeartbeatSchedule,
    health_status,
    heartbeat_url,
    hive_heartbeat,
    queen_heartbeat,
    rfc3339,
)
from rbee_serve.hub.orchestrator.load_failure import load_failure_message
from rbee_serve.hub.orchestrator.message_schemas import MAX_TEXT, Message
from rbee_serve.hub.orchestrator.ready import ready_message
from rbee_serve.worker_info import VERSION, worker_info
from tests.hub.examples import WORKER, replica, worker_state

NOON = datetime(2026, 1, 31, 12, 0, 0, 250_000, tzinfo=UTC)
PAIR = worker_state(replica(devices=(3, 2)), replica("b", "boot-b", devices=(1,)), desired_replicas=2)


def pretty(message: Message) -> str:
    """The message as it is sent, with spaces."""
    return json.dumps(json.loads(message.model_dump_json(exclude_none=True)))


def test_the_ready_callback() -> None:
    assert pretty(ready_message(WORKER, PAIR, "http://box:8000/", 8000, "llm")) == (
        '{"worker_id": "llm-1", "url": "http://box:8000/workers/llm-1", "model_ref": "hf:org/model", '
        '"backend": "cuda", "device": 1, "devices": [1, 2, 3], "vram_bytes": 2000, "vram_source": "driver", '
        '"port": 8000, "worker_type": "llm", "boot_id": "boot-a"}'
    )


def test_the_heartbeat_for_a_hive() -> None:
    assert pretty(hive_heartbeat(PAIR, NOON)) == (
        '{"worker_id": "llm-1", "timestamp": "2026-01-31T12:00:00.250Z", "health_status": "healthy"}'
    )


def test_the_heartbeat_for_a_queen() -> None:
    assert pretty(queen_heartbeat(worker_info(WORKER, PAIR, 8000, "llm"), NOON)) == (
        '{"worker": {"id": "llm-1", "model_id": "model", "device": "GPU-1", "devices": ["GPU-1", "GPU-2", "GPU-3"], '
        f'"port": 8000, "status": "ready", "implementation": "rbee-serve/llm", "version": "{VERSION}", '
        '"vram_bytes": 2000, "vram_source": "driver"}, '
        '"timestamp": "2026-01-31T12:00:00.250Z"}'
    )


def test_devices_of_several_machines_are_listed_with_their_nodes() -> None:
    near, far = replica(devices=(0, 1), node="10.0.0.1"), replica("b", "boot-b", devices=(0,), node="10.0.0.2")
    state = worker_state(far, near, desired_replicas=2)
    ready, info = ready_message(WORKER, state, "http://box:8000", 8000, "llm"), worker_info(WORKER, state, 8000, "llm")
    assert (ready.device, ready.devices) == (0, [0, 1, 0])
    assert (info["device"], info["devices"]) == ("GPU-0", ["GPU-0", "GPU-1", "GPU-0"])
    assert ready.nodes == info["nodes"] == ["10.0.0.1", "10.0.0.1", "10.0.0.2"]
    assert queen_heartbeat(info, NOON).worker.nodes == ready.nodes


def test_on_one_machine_replicas_on_one_device_list_it_once_and_no_node() -> None:
    state = worker_state(replica(node="10.0.0.1"), replica("b", "boot-b", node="10.0.0.1"), desired_replicas=2)
    info = worker_info(WORKER, state, 8000, "llm")
    assert info["devices"] == ["GPU-0"]
    assert "nodes" not in info
    assert "nodes" not in pretty(ready_message(WORKER, state, "http://box:8000", 8000, "llm"))


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (("driver", "driver"), "driver"),
        (("driver", "share"), "share"),
        (("engine", "torch"), "engine"),
        (("ram", None), "ram"),
        ((None, None), None),
    ],
)
def test_the_memory_of_several_replicas_is_as_exact_as_the_least_exact_of_them(
    sources: tuple[str | None, ...], expected: str | None
) -> None:
    first, second = replica(memory_source=sources[0]), replica("b", "boot-b", memory_source=sources[1])
    failed = replica("c", "boot-c", phase="error", memory_source="share")
    state = worker_state(first, second, failed, desired_replicas=2)
    assert worker_info(WORKER, state, 8000, "llm").get("vram_source") == expected
    message = ready_message(WORKER, state, "http://box:8000", 8000, "llm")
    assert message.vram_source == expected
    assert ("vram_source" in pretty(message)) == (expected is not None)


def test_the_report_of_a_failed_load() -> None:
    failed = replica(phase="error", error_code="INSUFFICIENT_VRAM", error="the model needs 9 GB; 8 are free")
    assert pretty(load_failure_message(WORKER, failed, "llm", NOON)) == (
        '{"worker_id": "llm-1", "worker_type": "llm", "model_ref": "hf:org/model", "boot_id": "boot-a", '
        '"code": "INSUFFICIENT_VRAM", "message": "the model needs 9 GB; 8 are free", '
        '"timestamp": "2026-01-31T12:00:00.250Z"}'
    )


def test_the_reason_of_a_failed_load_is_cut_to_what_a_receiver_accepts() -> None:
    failed = replica(phase="error", error="x" * (MAX_TEXT + 1))
    assert load_failure_message(WORKER, failed, "llm", NOON).message == "x" * MAX_TEXT


def test_a_worker_without_a_model_has_its_served_name_as_model_ref() -> None:
    worker = WorkerConfig(id="echo", type="echo")
    message = ready_message(worker, worker_state(replica(backend="cpu")), "http://box:8000", 8000, "echo")
    assert (message.model_ref, message.backend, message.device) == ("echo", "cpu", 0)


@pytest.mark.parametrize(
    ("worker", "device"),
    [
        ({}, "CPU-0"),
        ({"gpus": 1}, "GPU-0"),
        ({"backend": "cuda"}, "GPU-0"),
        ({"backend": "metal"}, "METAL-0"),
    ],
)
def test_before_the_first_push_the_device_follows_from_the_configuration(worker: dict[str, Any], device: str) -> None:
    info = worker_info(WorkerConfig(id="llm-1", type="pkg.module:SPEC", **worker), worker_state(), 8000, "llm")
    assert (info["device"], info["status"], info["implementation"]) == (device, "starting", "rbee-serve/llm")


def test_the_worker_type_is_its_name_and_not_its_import_string() -> None:
    worker = WorkerConfig(id="mine", type="pkg.module:SPEC", model_ref="file:model")
    assert worker_info(worker, PAIR, 8000, "mine")["implementation"] == "rbee-serve/mine"
    assert ready_message(worker, PAIR, "http://box:8000", 8000, "mine").worker_type == "mine"


def test_timestamps_are_in_utc() -> None:
    assert rfc3339(NOON.astimezone(timezone(timedelta(hours=5)))) == "2026-01-31T12:00:00.250Z"


def test_fewer_replicas_than_desired_is_degraded_and_so_is_a_shutdown() -> None:
    assert health_status(worker_state(replica(), desired_replicas=2)) == "degraded"
    assert health_status(worker_state(replica(healthy=False))) == "degraded"
    assert health_status(worker_state()) == "degraded"
    assert health_status(worker_state(replica(), stopping=True)) == "degraded"


@pytest.mark.parametrize(
    ("protocol", "callback_url", "url"),
    [
        ("hive", "http://hive:9200/v1/workers/ready", "http://hive:9200/v1/heartbeat"),
        ("hive", "http://[::1]:9200", "http://[::1]:9200/v1/heartbeat"),
        ("queen", "https://me:secret@queen/some/where?x=1", "https://me:secret@queen/v1/worker-heartbeat"),
    ],
)
def test_heartbeats_go_to_the_origin_of_the_callback(protocol: Any, callback_url: str, url: str) -> None:
    assert heartbeat_url(OrchestratorConfig(callback_url=callback_url, protocol=protocol)) == url


def test_a_missed_heartbeat_is_skipped_and_the_schedule_kept() -> None:
    schedule = HeartbeatSchedule(30)
    schedule.start(100)
    schedule.sent(100.2)
    assert schedule.next_due_at == 130
    schedule.sent(135)  # late
    assert schedule.next_due_at == 160
    schedule.sent(251)  # three were missed
    assert schedule.next_due_at == 280
    schedule.start(260)
    assert schedule.next_due_at == 280
