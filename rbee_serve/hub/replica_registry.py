"""The live replicas, by their last update.

It does not depend on Ray. The clock is injected; every method may be called from any thread.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import msgspec

from rbee_serve.config import WorkerConfig
from rbee_serve.deploy_status import DeploymentStatus
from rbee_serve.hub.recovery import ENDED, ENDED_IN_LOAD, SILENT, Recovery
from rbee_serve.state import STALE_AFTER_S, ReplicaState, Snapshot, WorkerState, fold

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A replica's last update, when it arrived, and the connection that it came over."""

    state: ReplicaState
    sequence: int
    updated_at: float
    source: object
    assumed: bool = False
    """Whether its error is a conclusion of the hub: its connection was lost while it loaded."""

    @property
    def expires_at(self) -> float:
        """When the replica counts as gone without another update. While it loads, imports hold the GIL for as long as
        they like. One that has failed has exited and sends nothing more: its reason stays."""
        return math.inf if self.state.phase in ("loading", "error") else self.updated_at + STALE_AFTER_S


class ReplicaRegistry:
    """Folds the updates of all replicas into a `Snapshot` whose version grows only with a change."""

    def __init__(
        self, workers: Iterable[WorkerConfig], *, boot_id: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._desired_replicas = {worker.id: worker.desired_replicas for worker in workers}
        self._clock = clock
        self._lock = threading.RLock()
        self._subscribers: list[Callable[[], None]] = []
        self._replicas: dict[str, dict[str, _Entry]] = {worker_id: {} for worker_id in self._desired_replicas}
        self._recoveries = {worker_id: Recovery(clock) for worker_id in self._desired_replicas}
        self._stopping = False
        self._aborting = False
        self._snapshot = Snapshot(version=1, workers=self._fold(), hub_boot_id=boot_id)

    def push(self, state: ReplicaState, sequence: int = 0, source: object = None) -> None:
        """Take the `sequence`-th update of a replica, which came over the connection `source`.

        It is ignored if a later one has overtaken it, as happens while the hub starts, or if the worker is not
        configured.
        """
        with self._lock:
            replicas = self._replicas.get(state.worker_id)
            if replicas is None:
                return
            recovery = self._recoveries[state.worker_id]
            known = replicas.get(state.replica_id)
            if known is None or known.state.boot_id != state.boot_id:
                self._admit_boot(replicas, state.replica_id)
                recovery.begin()
                known = None
            elif sequence < known.sequence:
                return
            elif known.state.phase == "error" and not known.assumed:
                return  # an error is final for its boot: a later update was under way before, or is a goodbye
            replicas[state.replica_id] = _Entry(state, sequence, self._clock(), source)
            if state.serves:
                if known is None or not known.state.serves:
                    recovery.serve()
            elif state.phase == "error" or not state.healthy:
                recovery.fail(state)
            self._refresh()

    def disconnect(self, source: object) -> None:
        """A connection was lost: the replica whose last update came over it is gone, unless it has failed."""
        with self._lock:
            for replicas in self._replicas.values():
                for replica_id, entry in list(replicas.items()):
                    if entry.source is source and entry.state.phase != "error":
                        self._lose(replicas, replica_id, entry)
            self._refresh()

    def down(self) -> tuple[str, ...]:
        """The workers of which no replica serves or loads: only Ray Serve knows what happens to them next."""
        with self._lock:
            return tuple(
                worker_id
                for worker_id, replicas in self._replicas.items()
                if not any(entry.state.serves or entry.state.phase == "loading" for entry in replicas.values())
            )

    def observe(self, deployments: Mapping[str, DeploymentStatus], queried_at: float) -> None:
        """What Ray Serve reports about the deployments of these workers, by a query that began at `queried_at` on the
        registry's clock."""
        with self._lock:
            for worker_id, status in deployments.items():
                if worker_id in self._recoveries:
                    self._recoveries[worker_id].observe(status, queried_at)
            self._refresh()

    def snapshot(self) -> Snapshot:
        """All workers at this moment."""
        with self._lock:
            return self._refresh()

    def worker(self, worker_id: str) -> WorkerState:
        """A configured worker at this moment. Raises `KeyError` for any other."""
        state = self.snapshot().worker(worker_id)
        if state is None:
            raise KeyError(worker_id)
        return state

    def drain(self) -> None:
        """The application is being shut down: no worker is ready from now on."""
        with self._lock:
            self._stopping = True
            self._refresh()

    def abort(self) -> None:
        """The time limit of the drain is over: running requests have to end with an error."""
        with self._lock:
            self._stopping = self._aborting = True
            self._refresh()

    def subscribe(self, on_change: Callable[[], None]) -> None:
        """Call `on_change` after every change. It runs under the registry's lock, in any thread, and must not block."""
        with self._lock:
            self._subscribers.append(on_change)

    def _admit_boot(self, replicas: dict[str, _Entry], replica_id: str) -> None:
        """Prepare for the first update of a process. It goes to the end of the list, and is the worker's next attempt:
        the error of an earlier one is removed."""
        replicas.pop(replica_id, None)
        for other, entry in list(replicas.items()):
            if entry.state.phase == "error":
                del replicas[other]

    def _lose(self, replicas: dict[str, _Entry], replica_id: str, entry: _Entry) -> None:
        """The connection of a replica was lost. One that was loading stays listed as failed, until it reports or the
        next one starts."""
        recovery, state = self._recoveries[entry.state.worker_id], entry.state
        if state.phase != "loading":
            recovery.lose(state, ENDED)
            del replicas[replica_id]
            return
        recovery.lose(state, ENDED_IN_LOAD)
        failed = msgspec.structs.replace(
            state, phase="error", load=None, error_code="WORKER_UNHEALTHY", error=ENDED_IN_LOAD
        )
        replicas[replica_id] = replace(entry, state=failed, assumed=True)

    def _refresh(self) -> Snapshot:
        """Remove stale replicas; on a change, make a new version and call every subscriber."""
        now = self._clock()
        for replicas in self._replicas.values():
            for replica_id, entry in [item for item in replicas.items() if item[1].expires_at < now]:
                self._recoveries[entry.state.worker_id].lose(entry.state, SILENT)
                del replicas[replica_id]
        workers, old = self._fold(), self._snapshot
        if (workers, self._stopping, self._aborting) != (old.workers, old.stopping, old.aborting):
            self._snapshot = Snapshot(
                version=old.version + 1,
                workers=workers,
                stopping=self._stopping,
                aborting=self._aborting,
                hub_boot_id=old.hub_boot_id,
            )
            if not self._stopping:
                _log_changes(old.workers, workers)
            for on_change in self._subscribers:
                on_change()
        return self._snapshot

    def _fold(self) -> tuple[WorkerState, ...]:
        return tuple(self._fold_worker(worker_id, desired) for worker_id, desired in self._desired_replicas.items())

    def _fold_worker(self, worker_id: str, desired_replicas: int) -> WorkerState:
        entries, recovery = self._replicas[worker_id].values(), self._recoveries[worker_id]
        errors = sum(entry.state.phase == "error" and not entry.assumed for entry in entries)
        at_work = any(entry.state.serves or entry.state.phase == "loading" for entry in entries)
        return fold(
            worker_id,
            desired_replicas,
            [entry.state for entry in entries],
            was_ready=recovery.was_ready,
            stopping=self._stopping,
            given_up=not at_work and recovery.given_up(errors, desired_replicas),
            lost=recovery.lost,
            waits_for=None if at_work else recovery.waits_for,
        )


def _log_changes(before: tuple[WorkerState, ...], after: tuple[WorkerState, ...]) -> None:
    """Log which workers were lost, given up or serve again, and why."""
    for old, new in zip(before, after, strict=True):
        if new.given_up and not old.given_up:
            logger.error("worker %s has failed for good: %s", new.worker_id, new.reason)
        elif new.lost is not None and new.lost != old.lost:
            logger.warning("worker %s: %s; Ray Serve starts another replica", new.worker_id, new.lost)
        elif old.lost is not None and new.lost is None and new.serving:
            logger.warning("worker %s serves again", new.worker_id)
