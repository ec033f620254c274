"""The announcer against receivers on real sockets."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rbee_serve.config import ApplicationConfig, parse_application
from rbee_serve.hub.announcer import Announcer
from rbee_serve.hub.orchestrator import callback_loop, delivery_log
from rbee_serve.hub.orchestrator.fake_hive import FakeHive
from rbee_serve.hub.orchestrator.notifier import OrchestratorNotifier
from rbee_serve.hub.replica_registry import ReplicaRegistry
from rbee_serve.supervisor.worker_output import worth_showing
from tests.certificates import Authority
from tests.hub.examples import application, replica
from tests.hub.lookups import Lookups, lookup_threads
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
from tests.served.measured import measured

READY, BEAT = "/v1/workers/ready", "/v1/heartbeat"


@contextmanager
def announcing(config: ApplicationConfig) -> Iterator[ReplicaRegistry]:
    """The registry of an announcer that runs while the block does."""
    registry = ReplicaRegistry(config.workers)
    implementations = {worker.id: "llm" for worker in config.workers}
    announcer = Announcer(config, implementations, registry, "http://box:8000", 8000)
    announcer.start()
    try:
        yield registry
    finally:
        began = time.monotonic()
        announcer.stop()
        assert time.monotonic() - began < 1  # a call in progress takes 5 s
        assert announcer.join(1)


def kinds(hive: FakeHive) -> list[str]:
    return [message.path for message in hive.messages]


@pytest.mark.parametrize("protocol", ["hive", "queen"])
def test_a_strict_hive_finds_no_fault_in_any_message(protocol: str) -> None:
    hive = quiet_hive()
    with running(hive) as url:
        config = application(f"{url}{READY}", protocol=protocol, on_error_url=f"{url}/v1/workers/error")
        with announcing(config) as registry:
            registry.push(replica(phase="loading"))
            time.sleep(0.1)
            assert not hive.messages
            registry.push(replica(phase="error"))
            eventually(lambda: hive.messages)
            registry.push(replica("b", "boot-b"))
            eventually(lambda: len(hive.messages) >= 5)
    assert [message.wrong for message in hive.messages] == [()] * len(hive.messages)
    assert [message.status for message in hive.messages] == [200] * len(hive.messages)
    beat = {"hive": BEAT, "queen": "/v1/worker-heartbeat"}[protocol]
    assert [*kinds(hive)[:3], kinds(hive)[-1]] == ["/v1/workers/error", READY, beat, beat]


def test_ready_is_sent_once_and_at_once_and_heartbeats_no_faster_than_configured() -> None:
    hive = quiet_hive()
    with running(hive) as url, announcing(application(f"{url}{READY}")) as registry:
        pushed_at = time.monotonic()
        registry.push(replica())
        eventually(lambda: len(received(hive, BEAT)) >= 8)
    assert kinds(hive).count(READY) == 1
    assert hive.messages[0].at - pushed_at < 1
    beats = [message.at for message in hive.messages if message.path == BEAT]
    assert beats[-1] - beats[0] > 0.1 * (len(beats) - 1) - 0.05


def test_each_worker_sends_its_own_messages() -> None:
    hive = quiet_hive()
    names = ("llm-1", "llm-2", "llm-3")
    with running(hive) as url, announcing(application(f"{url}{READY}", names)) as registry:
        for name in names:
            registry.push(replica(worker_id=name))
        eventually(lambda: {m["worker_id"] for m in received(hive, BEAT)} == set(names))
    assert {message["worker_id"] for message in received(hive, READY)} == set(names)


def test_ready_is_retried_until_an_orchestrator_that_starts_late_acknowledges_it() -> None:
    hive = quiet_hive(status=503)
    with running(hive) as url, announcing(application(f"{url}{READY}")) as registry:
        registry.push(replica())
        eventually(lambda: len(hive.messages) >= 3)
        assert set(kinds(hive)) == {READY}
        hive.status = None
        eventually(lambda: received(hive, BEAT))
    assert hive.messages[-1].status == 200


@pytest.mark.parametrize("protocol", ["hive", "queen"])
def test_a_hive_that_wants_a_token_gets_it_with_every_message_over_tls(protocol: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    (tmp_path / "token").write_text("s3cret")
    hive = quiet_hive(token=lambda: b"s3cret")
    with running(hive, authority.issue()) as url:
        files: dict[str, Any] = {"token_file": tmp_path / "token", "ca_file": authority.file}
        config = application(f"{url}{READY}", protocol=protocol, on_error_url=f"{url}/v1/workers/error", **files)
        with announcing(config) as registry:
            registry.push(replica("b", "boot-b", phase="error"))
            eventually(lambda: hive.messages)
            registry.push(replica())
            eventually(lambda: len(hive.messages) >= 4)
    assert {message.status for message in hive.messages} == {200}
    assert len(set(kinds(hive))) == 3
    assert hive.refused == []


def test_a_wrong_token_is_one_line_and_the_right_one_counts_without_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (token_file := tmp_path / "token").write_text("yesterday")
    hive, names = quiet_hive(token=lambda: b"today"), ("llm-1", "llm-2", "llm-3")
    with running(hive) as url, announcing(application(f"{url}{READY}", names, token_file=token_file)) as registry:
        for name in names:
            registry.push(replica(worker_id=name))
        eventually(lambda: len(hive.refused) >= 9)
        assert hive.messages == []
        token_file.write_text("today")
        eventually(lambda: {message["worker_id"] for message in received(hive, BEAT)} == set(names))
    texts = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [text.partition(";")[0] for text in texts] == [
        f"{url}{READY} refuses this server with status 401",
        f"{url}{READY} accepts this server again",
    ]
    assert str(token_file) in texts[0]
    assert "yesterday" not in caplog.text
    line = f"2026-11-30 12:00:00,000 WARNING {caplog.records[0].name} [-] {texts[0]}"
    assert list(worth_showing("ServeReplica:rbee:hub", [line], verbose=False)) == [f"hub: {texts[0]}"]


def test_ready_is_sent_for_a_new_boot_and_heartbeats_before_it_are_degraded() -> None:
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


def test_ready_is_sent_again_to_a_hive_that_forgets() -> None:
    hive = quiet_hive(forget_after=2)
    with running(hive) as url, announcing(application(f"{url}{READY}")) as registry:
        registry.push(replica())
        eventually(lambda: kinds(hive).count(READY) >= 2)
    assert kinds(hive)[:5] == [READY, BEAT, BEAT, BEAT, READY]
    assert hive.messages[3].status == 404


@contextmanager
def bad_receiver(name: str) -> Iterator[tuple[str, Listener]]:
    """The URL of a receiver that misbehaves, and a listener that must get no connection."""
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
def test_a_bad_receiver_is_retried_and_never_counts_as_acknowledged(
    name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_log, "REPEAT_S", 0.0)  # a line for each failure
    with bad_receiver(name) as (url, elsewhere):
        config = application(f"{url}{READY}", timeout_s=0.1)
        threads = threading.active_count()
        with announcing(config) as registry:
            registry.push(replica())
            eventually(lambda: len(caplog.records) >= 4)
            # The announcer's thread, and those of the test's server.
            assert threading.active_count() <= threads + 1 + len(caplog.records) + 1
        assert elsewhere.connections == 0
    assert all("did not accept the ready callback" in record.getMessage() for record in caplog.records)
    assert not any(record.exc_info for record in caplog.records)


def test_heartbeats_keep_their_schedule_with_a_hive_that_responds_late() -> None:
    hive = quiet_hive(delay_s=0.15)
    with running(hive) as url, announcing(application(f"{url}{READY}")) as registry:
        registry.push(replica())
        eventually(lambda: len(received(hive, BEAT)) >= 6)
    beats = [message.at for message in hive.messages if message.path == BEAT]
    assert min(later - earlier for earlier, later in pairwise(beats)) > 0.15


def test_after_a_stop_nothing_is_sent_even_while_a_call_hangs() -> None:
    with listening(hang) as receiver:
        with announcing(application(f"{receiver.url}{READY}", timeout_s=0.5)) as registry:
            registry.push(replica())
            eventually(lambda: receiver.connections == 1)
        time.sleep(0.3)
        assert receiver.connections == 1


def test_without_an_orchestrator_there_is_no_thread() -> None:
    threads = threading.active_count()
    with announcing(parse_application({"workers": [{"id": "llm-1", "type": "llm"}]})) as registry:
        registry.push(replica())
        assert threading.active_count() == threads


def test_an_announcer_with_nothing_due_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = [0], OrchestratorNotifier.next_due_at

    def counted(self: OrchestratorNotifier, state: Any) -> float:
        calls[0] += 1
        return real(self, state)

    monkeypatch.setattr(OrchestratorNotifier, "next_due_at", counted)
    with announcing(application(f"http://127.0.0.1:{closed_port()}{READY}")):
        time.sleep(0.5)
        assert calls[0] <= 3


def test_an_unexpected_exception_does_not_silence_a_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rbee_serve.hub.announcer.AFTER_FAULT_S", 0.05)
    real, faults = OrchestratorNotifier.send_due, [0]

    async def faulty(self: OrchestratorNotifier, state: Any) -> None:
        faults[0] += 1
        if faults[0] <= 2:
            raise RuntimeError("a bug")
        await real(self, state)

    monkeypatch.setattr(OrchestratorNotifier, "send_due", faulty)
    hive = quiet_hive()
    with running(hive) as url, announcing(application(f"{url}{READY}")) as registry:
        registry.push(replica())
        eventually(lambda: received(hive, BEAT))
    assert len(caplog.records) == 2


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lookups]:
    lookups = Lookups()
    monkeypatch.setattr(socket, "getaddrinfo", lookups.getaddrinfo)
    yield lookups
    lookups.release()
    eventually(lambda: not lookup_threads())


def by_name(url: str, name: str = "hive.example") -> str:
    return url.replace("127.0.0.1", name)


def test_dns_that_hangs_grows_no_threads_and_does_not_delay_the_stop(
    lookups: Lookups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callback_loop, "FRESH_S", 0.2)
    lookups.hang()
    names = tuple(f"llm-{number}" for number in range(20))
    threads = threading.active_count()
    began = time.monotonic()
    config = application(f"http://hive.example{READY}", names, timeout_s=0.1)
    with announcing(config) as registry:  # asserts that the stop returns at once and the thread ends within a second
        for name in names:
            registry.push(replica(worker_id=name))
        while time.monotonic() < began + 2:
            assert threading.active_count() <= threads + 1 + callback_loop.MAX_LOOKUPS
            time.sleep(0.05)
    assert lookups.started == callback_loop.MAX_LOOKUPS


def test_dns_that_hangs_for_one_receiver_does_not_delay_the_heartbeats_to_another(lookups: Lookups) -> None:
    hive = quiet_hive()
    lookups.hang("errors.example")
    with running(hive) as url:
        config = application(by_name(f"{url}{READY}"), ("llm-1", "llm-2"), on_error_url="http://errors.example/")
        with announcing(config) as registry:
            registry.push(replica(worker_id="llm-2"))
            eventually(lambda: received(hive, BEAT))
            registry.push(replica(phase="error"))
            eventually(lambda: lookups.started >= 3)
            time.sleep(1)
    beats = [message.at for message in hive.messages if message.path == BEAT]
    assert max(later - earlier for earlier, later in pairwise(beats)) < 0.5


def test_after_dns_has_recovered_the_heartbeat_in_time_does_not_wait_for_a_lookup_that_still_hangs(
    lookups: Lookups, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All times are a fiftieth of the real ones: 30 s between heartbeats, 5 s for a call, a lookup that hangs for 60 s.
    scale = 50
    monkeypatch.setattr(callback_loop, "FRESH_S", callback_loop.FRESH_S / scale)
    hive = quiet_hive()
    with running(hive) as url:
        config = application(by_name(f"{url}{READY}"), heartbeat_interval_s=30 / scale, timeout_s=5 / scale)
        with announcing(config) as registry:
            registry.push(replica())
            eventually(lambda: len(received(hive, BEAT)) >= 2)
            beats, lookups_before = len(received(hive, BEAT)), lookups.started
            lookups.hang()
            eventually(lambda: lookups.started > lookups_before)
            lookups.recover()  # the lookup in progress goes on hanging
            recovered_at = time.monotonic()
            eventually(lambda: len(received(hive, BEAT)) > beats)
            assert lookup_threads() == 1
            measured("DNS hangs", "a heartbeat after DNS has recovered", time.monotonic() - recovered_at, 35 / scale)
