"""The announcer's threads against receivers on real sockets."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest

from rbee_serve.config import ApplicationConfig, parse_application
from rbee_serve.hub.announcer import Announcer
from rbee_serve.hub.orchestrator.fake_hive import FakeHive
from rbee_serve.hub.orchestrator.notifier import OrchestratorNotifier
from rbee_serve.hub.replica_registry import ReplicaRegistry
from tests.hub.examples import application, replica
from tests.hub.receivers import (
    OK,
    Listener,
    answering,
    closed_port,
    eventually,
    hang,
    listening,
    quiet_hive,
    received,
    running,
    trickling,
)

READY, BEAT = "/v1/workers/ready", "/v1/heartbeat"


@contextmanager
def announcing(config: ApplicationConfig) -> Iterator[ReplicaRegistry]:
    """The roster of an announcer that speaks while the block runs."""
    registry = ReplicaRegistry(config.workers)
    implementations = {worker.id: "llm" for worker in config.workers}
    announcer = Announcer(config, implementations, registry, "http://box:8000", 8000)
    announcer.start()
    try:
        yield registry
    finally:
        began = time.monotonic()
        announcer.stop()
        assert time.monotonic() - began < 0.1
        assert announcer.join(1)


def kinds(hive: FakeHive) -> list[str]:
    return [message.path for message in hive.messages]


@pytest.mark.parametrize("protocol", ["hive", "queen"])
def test_a_strict_hive_finds_nothing_wrong_with_any_message(protocol: str) -> None:
    hive = quiet_hive()
    with running(hive) as url:
        config = application(f"{url}{READY}", protocol=protocol, on_error_url=f"{url}/v1/workers/error")
        with announcing(config) as registry:
            registry.push(replica(phase="loading"))
            time.sleep(0.1)
            assert not hive.messages
            registry.push(replica("b", "boot-b", phase="error"))
            eventually(lambda: hive.messages)
            registry.push(replica())
            eventually(lambda: len(hive.messages) >= 5)
    assert [message.wrong for message in hive.messages] == [()] * len(hive.messages)
    assert [message.status for message in hive.messages] == [200] * len(hive.messages)
    beat = {"hive": BEAT, "queen": "/v1/worker-heartbeat"}[protocol]
    assert [*kinds(hive)[:3], kinds(hive)[-1]] == ["/v1/workers/error", READY, beat, beat]


def test_ready_is_sent_at_once_and_once_and_beats_come_no_faster_than_configured() -> None:
    hive = quiet_hive()
    with running(hive) as url, announcing(application(f"{url}{READY}")) as registry:
        pushed_at = time.monotonic()
        registry.push(replica())
        eventually(lambda: len(received(hive, BEAT)) >= 8)
    assert kinds(hive).count(READY) == 1
    assert hive.messages[0].at - pushed_at < 1
    beats = [message.at for message in hive.messages if message.path == BEAT]
    assert beats[-1] - beats[0] > 0.1 * (len(beats) - 1) - 0.05


def test_each_worker_has_a_voice_of_its_own() -> None:
    hive = quiet_hive()
    names = ("llm-1", "llm-2", "llm-3")
    with running(hive) as url, announcing(application(f"{url}{READY}", names)) as registry:
        for name in names:
            registry.push(replica(worker_id=name))
        eventually(lambda: {m["worker_id"] for m in received(hive, BEAT)} == set(names))
    assert {message["worker_id"] for message in received(hive, READY)} == set(names)


def test_ready_is_sent_again_until_an_orchestrator_that_comes_late_acknowledges_it() -> None:
    hive = quiet_hive(status=503)
    with running(hive) as url, announcing(application(f"{url}{READY}")) as registry:
        registry.push(replica())
        eventually(lambda: len(hive.messages) >= 3)
        assert set(kinds(hive)) == {READY}
        hive.status = None
        eventually(lambda: received(hive, BEAT))
    assert hive.messages[-1].status == 200


def test_a_new_boot_is_announced_and_the_beats_between_say_degraded() -> None:
    hive = quiet_hive()
    with running(hive) as url, announcing(application(f"{url}{READY}")) as registry:
        registry.push(replica())
        eventually(lambda: received(hive, BEAT))
        registry.push(replica(healthy=False))
        eventually(lambda: received(hive, BEAT)[-1]["health_status"] == "degraded")
        registry.push(replica("b", "boot-b"))
        registry.push(replica(phase="stopping"))
        eventually(lambda: received(hive, BEAT)[-1]["health_status"] == "healthy")
    assert [message["boot_id"] for message in received(hive, READY)] == ["boot-a", "boot-b"]


def test_a_hive_that_forgets_is_told_again() -> None:
    hive = quiet_hive(forget_after=2)
    with running(hive) as url, announcing(application(f"{url}{READY}")) as registry:
        registry.push(replica())
        eventually(lambda: kinds(hive).count(READY) >= 2)
    assert kinds(hive)[:5] == [READY, BEAT, BEAT, BEAT, READY]
    assert hive.messages[3].status == 404


@contextmanager
def bad_receiver(name: str) -> Iterator[tuple[str, Listener]]:
    """The URL of a receiver that does no good, and a listener to which nobody may come."""
    with listening(answering(OK)) as elsewhere:
        if name == "refusing":
            yield f"http://127.0.0.1:{closed_port()}", elsewhere
            return
        redirect = f"HTTP/1.1 308 Go\r\nLocation: {elsewhere.url}\r\nContent-Length: 0\r\n\r\n"
        talks = {
            "hanging": hang,
            "trickling": trickling(b"HTTP/1.1 200 OK\r\n\r\n"),
            "redirecting": answering(redirect.encode()),
            "babbling": answering(b"\x16\x03\x01 hello?"),
            "flooding": answering(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 10_000_000),
        }
        with listening(talks[name]) as receiver:
            yield receiver.url, elsewhere


@pytest.mark.parametrize("name", ["refusing", "hanging", "trickling", "redirecting", "babbling", "flooding"])
def test_a_bad_receiver_is_tried_again_and_never_believed(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with bad_receiver(name) as (url, elsewhere):
        config = application(f"{url}{READY}", timeout_s=0.1)
        threads = threading.active_count()
        with announcing(config) as registry:
            registry.push(replica())
            eventually(lambda: len(caplog.records) >= 4)
            # The announcer's own thread, a lookup, and those of the test's server.
            assert threading.active_count() <= threads + 2 + len(caplog.records) + 1
        assert elsewhere.connections == 0
    assert all("did not take the ready callback" in record.getMessage() for record in caplog.records)
    assert not any(record.exc_info for record in caplog.records)


def test_beats_keep_their_rhythm_with_a_hive_that_answers_late() -> None:
    hive = quiet_hive(delay_s=0.15)
    with running(hive) as url, announcing(application(f"{url}{READY}")) as registry:
        registry.push(replica())
        eventually(lambda: len(received(hive, BEAT)) >= 6)
    beats = [message.at for message in hive.messages if message.path == BEAT]
    assert min(later - earlier for earlier, later in pairwise(beats)) > 0.15


def test_no_more_is_said_once_it_is_stopped_even_while_a_call_hangs() -> None:
    with listening(hang) as receiver:
        with announcing(application(f"{receiver.url}{READY}", timeout_s=0.5)) as registry:
            registry.push(replica())
            eventually(lambda: receiver.connections == 1)
        time.sleep(0.3)
        assert receiver.connections == 1


def test_without_an_orchestrator_nobody_speaks() -> None:
    threads = threading.active_count()
    with announcing(parse_application({"workers": [{"id": "llm-1", "type": "llm"}]})) as registry:
        registry.push(replica())
        assert threading.active_count() == threads


def test_an_announcer_that_has_nothing_to_say_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, real = [0], OrchestratorNotifier.next_due_at

    def counted(self: OrchestratorNotifier, state: Any) -> float:
        asked[0] += 1
        return real(self, state)

    monkeypatch.setattr(OrchestratorNotifier, "next_due_at", counted)
    with announcing(application(f"http://127.0.0.1:{closed_port()}{READY}")):
        time.sleep(0.5)
        assert asked[0] <= 3


def test_an_unforeseen_fault_does_not_silence_a_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rbee_serve.hub.announcer._AFTER_A_BUG_S", 0.05)
    real, faults = OrchestratorNotifier.send_due, [0]

    def faulty(self: OrchestratorNotifier, state: Any) -> None:
        faults[0] += 1
        if faults[0] <= 2:
            raise RuntimeError("a bug")
        real(self, state)

    monkeypatch.setattr(OrchestratorNotifier, "send_due", faulty)
    hive = quiet_hive()
    with running(hive) as url, announcing(application(f"{url}{READY}")) as registry:
        registry.push(replica())
        eventually(lambda: received(hive, BEAT))
    assert len(caplog.records) == 2
