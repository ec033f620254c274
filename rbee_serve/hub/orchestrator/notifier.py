"""What one worker says to the orchestrator, and when.

    loading ──ready──► announce until acknowledged ──► heartbeats, for as long as the application runs
                          ▲                               │
                          └── a new boot, or a 404 ◄──────┘        (lost or short of replicas: heartbeats say degraded)

    a load that failed ──► report to `on_error_url` until acknowledged, where that is configured

There is no thread and no waiting in here: `next_due_at` says when the next message is to be sent, `send_due` sends it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from rbee_serve.config import OrchestratorConfig, WorkerConfig
from rbee_serve.hub.orchestrator.delivery import RetrySchedule
from rbee_serve.hub.orchestrator.heartbeat import HeartbeatSchedule, heartbeat_url, hive_heartbeat, queen_heartbeat
from rbee_serve.hub.orchestrator.load_failure import load_failure_message
from rbee_serve.hub.orchestrator.outbound import CallbackResult, redacted
from rbee_serve.hub.orchestrator.ready import ready_message
from rbee_serve.state import ReplicaState, WorkerState
from rbee_serve.worker_info import worker_info

logger = logging.getLogger(__name__)


class Post(Protocol):
    """`CallbackClient.post`, or what stands in for it."""

    def __call__(self, url: str, message: Mapping[str, Any], /) -> CallbackResult:
        """POST `message` as JSON to `url`. Never raises for what the network does."""
        ...


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class WorkerIdentity:
    """Who speaks. `implementation` is the name of the worker's type; `base_url` is how others reach this server and
    `port` where it listens."""

    worker: WorkerConfig
    implementation: str
    base_url: str
    port: int


class OrchestratorNotifier:
    """One worker's messages. Used by one thread; `clock` is monotonic, `wall_clock` stamps the messages."""

    def __init__(
        self,
        speaker: WorkerIdentity,
        orchestrator: OrchestratorConfig,
        post: Post,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._speaker = speaker
        self._orchestrator = orchestrator
        self._post = post
        self._clock = clock
        self._wall_clock = wall_clock
        self._heartbeat_url = heartbeat_url(orchestrator)
        self._ready = RetrySchedule(orchestrator.ready_backoff_max_s)
        self._failure = RetrySchedule(orchestrator.ready_backoff_max_s)
        self._beat = HeartbeatSchedule(orchestrator.heartbeat_interval_s)

    def next_due_at(self, state: WorkerState) -> float:
        """The moment of the next message while the worker is as `state` says; infinity if nothing is to be said."""
        return min(self._ready_due_at(state), self._beat.next_due_at, self._failure_due_at(state))

    def send_due(self, state: WorkerState) -> None:
        """Send the one message that has been due for longest, about `state`."""
        next_due_at = self.next_due_at(state)
        if next_due_at == self._ready_due_at(state):
            self._announce(state)
        elif next_due_at == self._beat.next_due_at:
            self._send_heartbeat(state)
        elif failed := self._unreported(state):
            self._report(failed)

    def _ready_due_at(self, state: WorkerState) -> float:
        return self._ready.next_due_at(state.boot_id) if state.ready and state.boot_id else math.inf

    def _failure_due_at(self, state: WorkerState) -> float:
        failed = self._unreported(state)
        return self._failure.next_due_at(failed.boot_id) if failed else math.inf

    def _unreported(self, state: WorkerState) -> ReplicaState | None:
        if self._orchestrator.on_error_url is None or state.stopping:
            return None
        failed = (replica for replica in state.replicas if replica.phase == "error")
        return next((replica for replica in failed if not self._failure.delivered(replica.boot_id)), None)

    def _announce(self, state: WorkerState) -> None:
        boot_id, me = state.boot_id or "", self._speaker
        answer = self._post(
            self._orchestrator.callback_url, ready_message(me.worker, state, me.base_url, me.port, me.implementation)
        )
        if answer.acknowledged:
            self._ready.succeeded(boot_id)
            self._beat.start(self._clock())
            logger.info("worker %s: ready, and %s knows", me.worker.id, redacted(self._orchestrator.callback_url))
        else:
            pause_s = self._ready.failed(boot_id, self._clock())
            self._warn("ready callback", self._orchestrator.callback_url, answer, f"next try in {pause_s:.1f} s")

    def _send_heartbeat(self, state: WorkerState) -> None:
        answer = self._post(self._heartbeat_url, self._heartbeat(state))
        self._beat.done(self._clock())
        if answer.status == 404:
            self._ready.start_over()
            self._warn("heartbeat", self._heartbeat_url, answer, "it does not know this worker; announcing it again")
        elif not answer.acknowledged:
            self._warn("heartbeat", self._heartbeat_url, answer, "the next beat comes as planned")

    def _heartbeat(self, state: WorkerState) -> dict[str, Any]:
        moment, me = self._wall_clock(), self._speaker
        if self._orchestrator.protocol == "queen":
            return queen_heartbeat(worker_info(me.worker, state, me.port, me.implementation), moment)
        return hive_heartbeat(state, moment)

    def _report(self, failed: ReplicaState) -> None:
        url, me = self._orchestrator.on_error_url or "", self._speaker
        answer = self._post(url, load_failure_message(me.worker, failed, me.implementation, self._wall_clock()))
        if answer.acknowledged:
            self._failure.succeeded(failed.boot_id)
        else:
            pause_s = self._failure.failed(failed.boot_id, self._clock())
            self._warn("report of the failed load", url, answer, f"next try in {pause_s:.1f} s")

    def _warn(self, what: str, url: str, answer: CallbackResult, what_now: str) -> None:
        logger.warning(
            "worker %s: %s did not take the %s: %s; %s", self._speaker.worker.id, redacted(url), what, answer, what_now
        )
