"""The messages of a worker and their times, on a clock that is set by hand."""

from __future__ import annotations

import asyncio
import logging
import math
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from rbee_serve.hub.orchestrator.callback_client import CallbackResult
from rbee_serve.hub.orchestrator.message_schemas import Message
from rbee_serve.hub.orchestrator.notifier import OrchestratorNotifier, WorkerIdentity
from rbee_serve.hub.orchestrator.retry_schedule import RetrySchedule
from rbee_serve.state import WorkerState
from tests.hub.examples import WORKER, Clock, application, replica, worker_state

READY, BEAT, QUEEN, FAILED = "/v1/workers/ready", "/v1/heartbeat", "/v1/worker-heartbeat", "/errors"
OK, GONE, NOTHING = CallbackResult(status=200), CallbackResult(status=404), CallbackResult(failure="timeout")
SERVING = worker_state(replica())


class Exchange:
    """A notifier, the messages that it has sent, and the results of its calls."""

    def __init__(self, **orchestrator: Any) -> None:
        options = {"heartbeat_interval_s": 30, "ready_backoff_max_s": 4, "on_error_url": f"http://hive{FAILED}"}
        config = application(f"http://hive{READY}", **{**options, **orchestrator}).orchestrator
        assert config is not None
        self.clock = Clock()
        self.results: dict[str, CallbackResult] = {}
        self.sent: list[tuple[float, str, Any]] = []
        self.call_takes_s = 0.0
        identity = WorkerIdentity(WORKER, "llm", "http://box:8000", 8000)
        self.notifier = OrchestratorNotifier(identity, config, self._post, clock=self.clock)

    async def _post(self, url: str, message: Message, /) -> CallbackResult:
        path = url.removeprefix("http://hive")
        self.sent.append((self.clock.now - 1000, path, message))
        self.clock.now += self.call_takes_s
        return self.results.get(path, OK)

    def run(self, state: WorkerState, seconds: float) -> list[tuple[float, str]]:
        """What is sent in the next `seconds` while the worker is in `state`: `(when, path)`."""
        before, end = len(self.sent), self.clock.now + seconds
        while (next_due_at := self.notifier.next_due_at(state)) < end:
            self.clock.now = max(self.clock.now, next_due_at)
            asyncio.run(self.notifier.send_due(state))
        self.clock.now = end
        return [(round(when, 3), path) for when, path, _ in self.sent[before:]]


@pytest.fixture(autouse=True)
def _no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: high)


def test_nothing_is_sent_before_the_worker_is_ready() -> None:
    exchange = Exchange()
    for state in (worker_state(), worker_state(replica(phase="loading")), worker_state(replica(healthy=False))):
        assert exchange.notifier.next_due_at(state) == math.inf
    assert not exchange.run(worker_state(replica(), stopping=True), 100)


def test_ready_is_followed_by_heartbeats_at_a_fixed_interval() -> None:
    assert Exchange().run(SERVING, 95) == [(0, READY), (0, BEAT), (30, BEAT), (60, BEAT), (90, BEAT)]


def test_ready_is_retried_with_capped_exponential_backoff_until_it_is_acknowledged() -> None:
    exchange = Exchange()
    exchange.results[READY] = CallbackResult(status=503)
    assert exchange.run(SERVING, 14) == [(when, READY) for when in (0, 0.5, 1.5, 3.5, 7.5, 11.5)]
    exchange.results[READY] = OK
    assert exchange.run(SERVING, 10) == [(15.5, READY), (15.5, BEAT)]


@pytest.mark.parametrize(
    "result", [CallbackResult(status=302), CallbackResult(status=404), CallbackResult(status=100), NOTHING]
)
def test_only_2xx_acknowledges(result: CallbackResult) -> None:
    exchange = Exchange()
    exchange.results[READY] = result
    assert {path for _, path in exchange.run(SERVING, 60)} == {READY}


def test_jitter_shortens_a_pause_by_up_to_a_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: low)
    assert [RetrySchedule(30).failed("boot", 0) for _ in range(3)] == [0.375] * 3
    schedule = RetrySchedule(3)
    assert [schedule.failed("boot", 0) for _ in range(5)] == [0.375, 0.75, 1.5, 2.25, 2.25]


def test_ready_is_sent_at_once_for_a_new_boot_and_not_again_for_an_old_one() -> None:
    exchange = Exchange()
    exchange.run(SERVING, 10)
    both = worker_state(replica(), replica("b", "boot-b"))
    assert exchange.run(both, 10) == []  # the worker's boot is that of the replica that has served longest
    assert exchange.run(worker_state(replica("b", "boot-b")), 5) == [(20, READY)]
    assert exchange.sent[-1][2].boot_id == "boot-b"
    assert exchange.run(SERVING, 4) == []


def test_a_new_boot_does_not_move_the_heartbeat_schedule() -> None:
    exchange = Exchange()
    exchange.run(SERVING, 10)
    assert exchange.run(worker_state(replica("b", "boot-b")), 30) == [(10, READY), (30, BEAT)]


def test_ready_is_sent_again_to_an_orchestrator_that_does_not_know_the_worker() -> None:
    exchange = Exchange()
    exchange.run(SERVING, 10)
    exchange.results[BEAT] = GONE
    assert exchange.run(SERVING, 60) == [(30, BEAT), (30, READY), (60, BEAT), (60, READY)]


def test_a_404_does_not_shorten_the_backoff_of_ready() -> None:
    exchange = Exchange(heartbeat_interval_s=1, ready_backoff_max_s=64)
    exchange.run(SERVING, 0.5)
    exchange.results.update({BEAT: GONE, READY: CallbackResult(status=500)})
    ready = [when for when, path in exchange.run(SERVING, 40) if path == READY]
    assert ready == [1, 1.5, 2.5, 4.5, 8.5, 16.5, 32.5]


def test_a_lost_worker_sends_degraded_heartbeats_and_ready_when_it_is_back() -> None:
    exchange = Exchange()
    exchange.run(SERVING, 10)
    assert exchange.run(worker_state(was := replica(phase="loading")), 30) == [(30, BEAT)]
    assert exchange.sent[-1][2].health_status == "degraded"
    assert exchange.run(worker_state(replica("b", "boot-b"), was, desired_replicas=2), 30) == [(40, READY), (60, BEAT)]
    assert exchange.sent[-1][2].health_status == "degraded"
    assert exchange.run(worker_state(replica("b", "boot-b")), 30) == [(90, BEAT)]
    assert exchange.sent[-1][2].health_status == "healthy"


def test_a_hub_that_starts_while_a_worker_is_replaced_goes_on_with_its_heartbeats() -> None:
    exchange = Exchange()
    assert exchange.run(worker_state(replica(phase="loading"), was_ready=True), 40) == [(0, BEAT), (30, BEAT)]
    assert exchange.sent[-1][2].health_status == "degraded"
    assert exchange.run(SERVING, 30) == [(40, READY), (60, BEAT)]


def test_a_worker_that_is_lost_before_its_ready_callback_was_acknowledged_sends_no_heartbeat() -> None:
    exchange = Exchange()
    exchange.results[READY] = NOTHING
    exchange.run(SERVING, 2)
    assert exchange.run(worker_state(was_ready=True), 100) == []


@pytest.mark.parametrize("phase", ["loading", "error"])
def test_a_failure_is_not_reported_while_more_is_tried(phase: str) -> None:
    exchange = Exchange()
    failed = worker_state(replica(phase=phase), replica("b", "boot-b", phase="error"))
    assert exchange.run(msgspec.structs.replace(failed, given_up=False), 100) == []
    assert exchange.run(msgspec.structs.replace(failed, given_up=True), 1)[0] == (100, FAILED)


def test_a_receiver_slower_than_the_interval_gets_fewer_heartbeats_and_never_two_at_once() -> None:
    exchange = Exchange(heartbeat_interval_s=2)
    exchange.run(SERVING, 1)
    exchange.call_takes_s, exchange.results[BEAT] = 5, NOTHING
    assert exchange.run(SERVING, 20) == [(2, BEAT), (8, BEAT), (14, BEAT), (20, BEAT)]


def test_after_a_pause_of_the_process_one_heartbeat_is_sent_and_the_schedule_kept() -> None:
    exchange = Exchange()
    exchange.run(SERVING, 1)
    exchange.clock.now += 200
    assert exchange.run(SERVING, 30) == [(201, BEAT), (210, BEAT)]


def test_a_failed_load_is_reported_once_for_each_boot_and_never_as_ready() -> None:
    exchange = Exchange()
    failed = worker_state(replica(phase="error", error="no weights"))
    assert exchange.run(failed, 1000) == [(0, FAILED)]
    assert exchange.sent[0][2].message == "no weights"
    assert exchange.run(worker_state(replica("b", "boot-b", phase="error")), 1000) == [(1000, FAILED)]


def test_two_failed_replicas_are_reported_one_after_the_other_with_backoff() -> None:
    exchange = Exchange()
    exchange.results[FAILED] = NOTHING
    failed = worker_state(replica(phase="error"), replica("b", "boot-b", phase="error"))
    assert exchange.run(failed, 3) == [(when, FAILED) for when in (0, 0.5, 1.5)]
    exchange.results[FAILED] = OK
    assert exchange.run(failed, 3) == [(3.5, FAILED), (3.5, FAILED)]
    assert [message.boot_id for *_, message in exchange.sent[-2:]] == ["boot-a", "boot-b"]


def test_without_on_error_url_a_failed_load_is_not_reported() -> None:
    assert not Exchange(on_error_url=None).run(worker_state(replica(phase="error")), 1000)


def test_an_on_error_url_that_hangs_does_not_stop_the_heartbeats() -> None:
    exchange = Exchange(ready_backoff_max_s=0.1)
    exchange.run(SERVING, 1)
    exchange.call_takes_s, exchange.results[FAILED] = 5, NOTHING
    sent = exchange.run(worker_state(replica(), replica("b", "boot-b", phase="error"), desired_replicas=2), 300)
    beats = [when for when, path in sent if path == BEAT]
    assert max(later - earlier for earlier, later in pairwise(beats)) <= 35


def test_a_queen_receives_all_of_info() -> None:
    exchange = Exchange(protocol="queen")
    assert exchange.run(SERVING, 1) == [(0, READY), (0, QUEEN)]
    assert exchange.sent[-1][2].worker.status == "ready"


def test_a_failure_is_one_warning_with_the_next_step(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    exchange = Exchange()
    exchange.results.update({READY: CallbackResult(status=500)})
    exchange.run(SERVING, 0.1)
    exchange.results.update({READY: OK, BEAT: NOTHING})
    exchange.run(SERVING, 1)
    exchange.results.update({BEAT: GONE})
    exchange.run(SERVING, 30)
    prefix = "worker llm-1: http://hive"
    assert [record.getMessage().removeprefix(prefix) for record in caplog.records] == [
        f"{READY} did not accept the ready callback: status 500; next attempt in 0.5 s",
        f"{READY} has accepted the ready callback after one failure",
        f"{BEAT} did not accept the heartbeat: timeout; the next one is sent on schedule",
        f"{BEAT} did not accept the heartbeat: status 404; it does not know this worker; sending ready again",
    ]
    assert not any(record.exc_info for record in caplog.records)


def test_an_orchestrator_that_is_down_for_hours_is_a_line_at_each_new_reason_and_every_five_minutes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    exchange = Exchange(heartbeat_interval_s=1)
    exchange.run(SERVING, 0.5)
    exchange.results[BEAT] = NOTHING
    exchange.run(SERVING, 10)
    for _ in range(300):  # by turns
        exchange.results[BEAT] = CallbackResult(failure="unreachable")
        exchange.run(SERVING, 1)
        exchange.results[BEAT] = NOTHING
        exchange.run(SERVING, 1)
    exchange.results[BEAT] = OK
    exchange.run(SERVING, 100)
    exchange.results[BEAT] = NOTHING
    exchange.run(SERVING, 10)
    prefix, next_one = f"worker llm-1: http://hive{BEAT} ", "; the next one is sent on schedule"
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line.removeprefix(prefix).removesuffix(next_one) for line in lines] == [
        "did not accept the heartbeat: timeout",
        "did not accept the heartbeat: unreachable (9 more since the last line)",
        "did not accept the heartbeat: timeout (290 more since the last line)",
        "did not accept the heartbeat: unreachable (8 more since the last line)",
        "did not accept the heartbeat: timeout (290 more since the last line)",
        "has accepted the heartbeat after 610 failures",
        "did not accept the heartbeat: timeout",
    ]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_retried_with_backoff_and_left_to_the_client_to_log(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    exchange = Exchange()
    exchange.results[READY] = CallbackResult(status=status)
    assert exchange.run(SERVING, 8) == [(when, READY) for when in (0, 0.5, 1.5, 3.5, 7.5)]
    exchange.results[READY] = OK
    exchange.results[BEAT] = CallbackResult(status=status)
    caplog.clear()
    assert exchange.run(SERVING, 70)[-3:] == [(11.5, BEAT), (41.5, BEAT), (71.5, BEAT)]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
