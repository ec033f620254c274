"""The messages of one worker to the orchestrator, and when each is due.

    loading ──ready──► ready callback until acknowledged ──► heartbeats, as long as the application runs
                          ▲                                     │
                          └──── a new boot, or a 404 ◄──────────┘    (lost or short of replicas: status `degraded`)

    nothing more is tried ──► report to `on_error_url` until acknowledged, where that is configured

This module has no thread and no timer: `next_due_at` is when the next message is due, `send_due` sends it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from rbee_serve.config import OrchestratorConfig, WorkerConfig
from rbee_serve.hub.orchestrator.callback_client import CallbackResult, redacted
from rbee_serve.hub.orchestrator.delivery_log import DeliveryLog
from rbee_serve.hub.orchestrator.heartbeat import HeartbeatSchedule, heartbeat_url, hive_heartbeat, queen_heartbeat
from rbee_serve.hub.orchestrator.load_failure import load_failure_message
from rbee_serve.hub.orchestrator.message_schemas import Heartbeat, Message, WorkerHeartbeat
from rbee_serve.hub.orchestrator.ready import ready_message
from rbee_serve.hub.orchestrator.retry_schedule import RetrySchedule
from rbee_serve.state import ReplicaState, WorkerState
from rbee_serve.worker_info import worker_info

logger = logging.getLogger(__name__)


class Post(Protocol):
    """`CallbackClient.post`, or its replacement in a test."""

    async def __call__(self, url: str, message: Message, /) -> CallbackResult:
        """POST `message` as JSON to `url`. A network fault is a result and never raised."""
        ...


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class WorkerIdentity:
    """A worker as the orchestrator sees it. `implementation` is the name of the worker's type, `base_url` the URL of
    this server for others, `port` where it listens."""

    worker: WorkerConfig
    implementation: str
    base_url: str
    port: int


class OrchestratorNotifier:
    """Sends one worker's messages, one at a time. `clock` is monotonic, `wall_clock` stamps the messages."""

    def __init__(
        self,
        identity: WorkerIdentity,
        orchestrator: OrchestratorConfig,
        post: Post,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._identity = identity
        self._orchestrator = orchestrator
        self._post = post
        self._clock = clock
        self._wall_clock = wall_clock
        self._heartbeat_url = heartbeat_url(orchestrator)
        self._ready = RetrySchedule(orchestrator.ready_backoff_max_s)
        self._failure = RetrySchedule(orchestrator.ready_backoff_max_s)
        self._heartbeats = HeartbeatSchedule(orchestrator.heartbeat_interval_s)
        self._has_seen_ready = False
        self._ready_log = self._log("ready callback", orchestrator.callback_url)
        self._heartbeat_log = self._log("heartbeat", self._heartbeat_url)
        self._failure_log = self._log("report of the failed load", orchestrator.on_error_url or "")

    def next_due_at(self, state: WorkerState) -> float:
        """When the next message is due while the worker is in `state`; infinity if none is."""
        self._has_seen_ready |= state.ready
        if state.was_ready and not self._has_seen_ready:  # another hub has died, whose heartbeats go on
            self._heartbeats.start(self._clock())
        return min(self._ready_due_at(state), self._heartbeats.next_due_at, self._failure_due_at(state))

    async def send_due(self, state: WorkerState) -> None:
        """Send the one message about `state` that has been due for longest."""
        next_due_at = self.next_due_at(state)
        if next_due_at == self._ready_due_at(state):
            await self._send_ready(state)
        elif next_due_at == self._heartbeats.next_due_at:
            await self._send_heartbeat(state)
        elif failed := self._unreported(state):
            await self._send_load_failure(failed)

    def _ready_due_at(self, state: WorkerState) -> float:
        return self._ready.next_due_at(state.boot_id) if state.ready and state.boot_id else math.inf

    def _failure_due_at(self, state: WorkerState) -> float:
        failed = self._unreported(state)
        return self._failure.next_due_at(failed.boot_id) if failed else math.inf

    def _unreported(self, state: WorkerState) -> ReplicaState | None:
        if self._orchestrator.on_error_url is None or state.stopping or not state.given_up:
            return None
        failed = (replica for replica in state.replicas if replica.phase == "error")
        return next((replica for replica in failed if not self._failure.acknowledged(replica.boot_id)), None)

    async def _send_ready(self, state: WorkerState) -> None:
        boot_id, identity = state.boot_id or "", self._identity
        message = ready_message(identity.worker, state, identity.base_url, identity.port, identity.implementation)
        result = await self._post(self._orchestrator.callback_url, message)
        if result.acknowledged:
            self._ready.succeeded(boot_id)
            self._heartbeats.start(self._clock())
            self._ready_log.accepted()
            url = redacted(self._orchestrator.callback_url)
            logger.info("worker %s: %s has acknowledged the ready callback", identity.worker.id, url)
        else:
            pause_s = self._ready.failed(boot_id, self._clock())
            self._ready_log.failed(result, self._clock(), f"next attempt in {pause_s:.1f} s")

    async def _send_heartbeat(self, state: WorkerState) -> None:
        result = await self._post(self._heartbeat_url, self._heartbeat(state))
        self._heartbeats.sent(self._clock())
        if result.status == 404:
            self._ready.start_over()
            self._heartbeat_log.failed(result, self._clock(), "it does not know this worker; sending ready again")
        elif result.acknowledged:
            self._heartbeat_log.accepted()
        else:
            self._heartbeat_log.failed(result, self._clock(), "the next one is sent on schedule")

    def _heartbeat(self, state: WorkerState) -> Heartbeat | WorkerHeartbeat:
        moment, identity = self._wall_clock(), self._identity
        if self._orchestrator.protocol == "queen":
            info = worker_info(identity.worker, state, identity.port, identity.implementation)
            return queen_heartbeat(info, moment)
        return hive_heartbeat(state, moment)

    async def _send_load_failure(self, failed: ReplicaState) -> None:
        url, identity = self._orchestrator.on_error_url or "", self._identity
        message = load_failure_message(identity.worker, failed, identity.implementation, self._wall_clock())
        result = await self._post(url, message)
        if result.acknowledged:
            self._failure.succeeded(failed.boot_id)
            self._failure_log.accepted()
        else:
            pause_s = self._failure.failed(failed.boot_id, self._clock())
            self._failure_log.failed(result, self._clock(), f"next attempt in {pause_s:.1f} s")

    def _log(self, message: str, url: str) -> DeliveryLog:
        return DeliveryLog(self._identity.worker.id, message, url)
