"""What a worker says and when, on a clock that is set by hand."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest

from rbee_serve.hub.orchestrator.delivery import RetrySchedule
from rbee_serve.hub.orchestrator.notifier import OrchestratorNotifier, WorkerIdentity
from rbee_serve.hub.orchestrator.outbound import CallbackResult
from rbee_serve.state import WorkerState
from tests.hub.examples import WORKER, Clock, application, replica, worker_state

READY, BEAT, QUEEN, FAILED = "/v1/workers/ready", "/v1/heartbeat", "/v1/worker-heartbeat", "/errors"
OK, GONE, NOTHING = CallbackResult(status=200), CallbackResult(status=404), CallbackResult(trouble="timeout")
SERVING = worker_state(replica())


class Told:
    """A conversation, what was said in it, and what the other side answers."""

    def __init__(self, **orchestrator: Any) -> None:
        options = {"heartbeat_interval_s": 30, "ready_backoff_max_s": 4, "on_error_url": f"http://hive{FAILED}"}
        config = application(f"http://hive{READY}", **{**options, **orchestrator}).orchestrator
        assert config is not None
        self.clock = Clock()
        self.answers: dict[str, CallbackResult] = {}
        self.said: list[tuple[float, str, Mapping[str, Any]]] = []
        self.takes_s = 0.0
        speaker = WorkerIdentity(WORKER, "llm", "http://box:8000", 8000)
        self.conversation = OrchestratorNotifier(speaker, config, self._post, clock=self.clock)

    def _post(self, url: str, message: Mapping[str, Any], /) -> CallbackResult:
        path = url.removeprefix("http://hive")
        self.said.append((self.clock.now - 1000, path, message))
        self.clock.now += self.takes_s
        return self.answers.get(path, OK)

    def live(self, state: WorkerState, seconds: float) -> list[tuple[float, str]]:
        """What is said in the next `seconds` while the worker is as `state` says: `(when, path)`."""
        before, end = len(self.said), self.clock.now + seconds
        while (next_due_at := self.conversation.next_due_at(state)) < end:
            self.clock.now = max(self.clock.now, next_due_at)
            self.conversation.send_due(state)
        self.clock.now = end
        return [(round(when, 3), path) for when, path, _ in self.said[before:]]


@pytest.fixture(autouse=True)
def _no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: high)


def test_nothing_is_said_before_the_worker_is_ready() -> None:
    told = Told()
    for state in (worker_state(), worker_state(replica(phase="loading")), worker_state(replica(healthy=False))):
        assert told.conversation.next_due_at(state) == math.inf
    assert not told.live(worker_state(replica(), stopping=True), 100)


def test_ready_comes_first_and_then_heartbeats_on_a_fixed_beat() -> None:
    assert Told().live(SERVING, 95) == [(0, READY), (0, BEAT), (30, BEAT), (60, BEAT), (90, BEAT)]


def test_ready_is_tried_again_with_growing_capped_pauses_until_it_is_acknowledged() -> None:
    told = Told()
    told.answers[READY] = CallbackResult(status=503)
    assert told.live(SERVING, 14) == [(when, READY) for when in (0, 0.5, 1.5, 3.5, 7.5, 11.5)]
    told.answers[READY] = OK
    assert told.live(SERVING, 10) == [(15.5, READY), (15.5, BEAT)]


@pytest.mark.parametrize(
    "answer", [CallbackResult(status=302), CallbackResult(status=404), CallbackResult(status=100), NOTHING]
)
def test_only_2xx_acknowledges(answer: CallbackResult) -> None:
    told = Told()
    told.answers[READY] = answer
    assert {path for _, path in told.live(SERVING, 60)} == {READY}


def test_pauses_are_shortened_by_up_to_a_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: low)
    assert [RetrySchedule(30).failed("boot", 0) for _ in range(3)] == [0.375] * 3
    delivery = RetrySchedule(3)
    assert [delivery.failed("boot", 0) for _ in range(5)] == [0.375, 0.75, 1.5, 2.25, 2.25]


def test_a_new_boot_is_announced_at_once_and_an_old_one_not_again() -> None:
    told = Told()
    told.live(SERVING, 10)
    both = worker_state(replica(), replica("b", "boot-b"))
    assert told.live(both, 10) == []  # the worker's boot is that of the replica that has served longest
    assert told.live(worker_state(replica("b", "boot-b")), 5) == [(20, READY)]
    assert told.said[-1][2]["boot_id"] == "boot-b"
    assert told.live(SERVING, 4) == []


def test_a_new_boot_does_not_move_the_beat() -> None:
    told = Told()
    told.live(SERVING, 10)
    assert told.live(worker_state(replica("b", "boot-b")), 30) == [(10, READY), (30, BEAT)]


def test_an_orchestrator_that_has_forgotten_the_worker_is_told_again() -> None:
    told = Told()
    told.live(SERVING, 10)
    told.answers[BEAT] = GONE
    assert told.live(SERVING, 60) == [(30, BEAT), (30, READY), (60, BEAT), (60, READY)]


def test_one_that_has_forgotten_and_takes_no_ready_does_not_quicken_the_pace() -> None:
    told = Told(heartbeat_interval_s=1, ready_backoff_max_s=64)
    told.live(SERVING, 0.5)
    told.answers.update({BEAT: GONE, READY: CallbackResult(status=500)})
    ready = [when for when, path in told.live(SERVING, 40) if path == READY]
    assert ready == [1, 1.5, 2.5, 4.5, 8.5, 16.5, 32.5]


def test_a_lost_worker_goes_on_beating_degraded_and_is_announced_when_it_is_back() -> None:
    told = Told()
    told.live(SERVING, 10)
    assert told.live(worker_state(was := replica(phase="loading")), 30) == [(30, BEAT)]
    assert told.said[-1][2]["health_status"] == "degraded"
    assert told.live(worker_state(replica("b", "boot-b"), was, desired_replicas=2), 30) == [(40, READY), (60, BEAT)]
    assert told.said[-1][2]["health_status"] == "degraded"
    assert told.live(worker_state(replica("b", "boot-b")), 30) == [(90, BEAT)]
    assert told.said[-1][2]["health_status"] == "healthy"


def test_a_receiver_that_is_slower_than_the_beat_gets_fewer_and_never_two_together() -> None:
    told = Told(heartbeat_interval_s=2)
    told.live(SERVING, 1)
    told.takes_s, told.answers[BEAT] = 5, NOTHING
    assert told.live(SERVING, 20) == [(2, BEAT), (8, BEAT), (14, BEAT), (20, BEAT)]


def test_after_a_pause_of_the_whole_process_one_heartbeat_is_sent_and_the_rhythm_kept() -> None:
    told = Told()
    told.live(SERVING, 1)
    told.clock.now += 200
    assert told.live(SERVING, 30) == [(201, BEAT), (210, BEAT)]


def test_a_failed_load_is_reported_once_for_each_boot_and_never_as_ready() -> None:
    told = Told()
    failed = worker_state(replica(phase="error", error="no weights"))
    assert told.live(failed, 1000) == [(0, FAILED)]
    assert told.said[0][2]["message"] == "no weights"
    assert told.live(worker_state(replica("b", "boot-b", phase="error")), 1000) == [(1000, FAILED)]


def test_two_failed_replicas_are_reported_one_after_the_other_with_pauses() -> None:
    told = Told()
    told.answers[FAILED] = NOTHING
    failed = worker_state(replica(phase="error"), replica("b", "boot-b", phase="error"))
    assert told.live(failed, 3) == [(when, FAILED) for when in (0, 0.5, 1.5)]
    told.answers[FAILED] = OK
    assert told.live(failed, 3) == [(3.5, FAILED), (3.5, FAILED)]
    assert [message["boot_id"] for *_, message in told.said[-2:]] == ["boot-a", "boot-b"]


def test_a_failed_load_is_reported_to_nobody_where_nobody_is_named() -> None:
    assert not Told(on_error_url=None).live(worker_state(replica(phase="error")), 1000)


def test_an_error_receiver_that_hangs_does_not_stop_the_heartbeats() -> None:
    told = Told(ready_backoff_max_s=0.1)
    told.live(SERVING, 1)
    told.takes_s, told.answers[FAILED] = 5, NOTHING
    said = told.live(worker_state(replica(), replica("b", "boot-b", phase="error"), desired_replicas=2), 300)
    beats = [when for when, path in said if path == BEAT]
    assert max(later - earlier for earlier, later in pairwise(beats)) <= 35


def test_a_queen_gets_all_of_info() -> None:
    told = Told(protocol="queen")
    assert told.live(SERVING, 1) == [(0, READY), (0, QUEEN)]
    assert told.said[-1][2]["worker"]["status"] == "ready"


def test_a_failure_is_one_warning_that_says_what_comes_next(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    told = Told()
    told.answers.update({READY: CallbackResult(status=500)})
    told.live(SERVING, 0.1)
    told.answers.update({READY: OK, BEAT: NOTHING})
    told.live(SERVING, 1)
    told.answers.update({BEAT: GONE})
    told.live(SERVING, 30)
    prefix = "worker llm-1: http://hive"
    assert [record.getMessage().removeprefix(prefix) for record in caplog.records] == [
        f"{READY} did not take the ready callback: it answered 500; next try in 0.5 s",
        f"{BEAT} did not take the heartbeat: timeout; the next beat comes as planned",
        f"{BEAT} did not take the heartbeat: it answered 404; it does not know this worker; announcing it again",
    ]
    assert not any(record.exc_info for record in caplog.records)
