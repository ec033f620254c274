"""The roster: which replicas live, by what they have pushed and when.

It knows nothing of Ray. The clock is injected; every method may be called from any thread.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rbee_serve.config import WorkerConfig
from rbee_serve.state import LOADING_STALE_AFTER_S, STALE_AFTER_S, ReplicaState, Snapshot, WorkerState, fold


@dataclass(frozen=True, slots=True)
class _Entry:
    """A replica's last push, and when it came."""

    state: ReplicaState
    sequence: int
    pushed_at: float

    @property
    def expires_at(self) -> float:
        """From when on silence means that the replica is gone. One that has raised is gone already and says no more:
        its reason stays."""
        if self.state.phase == "error":
            return math.inf
        return self.pushed_at + (LOADING_STALE_AFTER_S if self.state.phase == "loading" else STALE_AFTER_S)


class ReplicaRegistry:
    """Takes the pushes of all replicas and folds them into a `Snapshot` whose version grows only with a change."""

    def __init__(
        self, workers: Iterable[WorkerConfig], *, boot_id: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._desired_replicas = {worker.id: worker.desired_replicas for worker in workers}
        self._clock = clock
        self._lock = threading.RLock()
        self._subscribers: list[Callable[[], None]] = []
        self._replicas: dict[str, dict[str, _Entry]] = {worker_id: {} for worker_id in self._desired_replicas}
        self._was_ready: set[str] = set()
        self._stopping = False
        self._cutting = False
        self._snapshot = Snapshot(version=1, workers=self._fold(), hub_boot_id=boot_id)

    def push(self, state: ReplicaState, sequence: int = 0) -> None:
        """A replica says how it is, in its `sequence`-th push.

        Nothing happens when a later one has overtaken it, as can be while the hub starts, or when the worker is not
        configured here.
        """
        with self._lock:
            replicas = self._replicas.get(state.worker_id)
            if replicas is None:
                return
            known = replicas.get(state.replica_id)
            if known is None or known.state.boot_id != state.boot_id:
                self._admit_boot(replicas, state.replica_id)
            elif sequence < known.sequence:
                return
            elif known.state.phase == "error":
                return  # an error is the last word of its boot: what comes later was under way before, or is farewell
            replicas[state.replica_id] = _Entry(state, sequence, self._clock())
            if state.serves:
                self._was_ready.add(state.worker_id)
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

    def seconds_since_last_push(self, worker_id: str) -> float:
        """Seconds since a living replica of the worker last pushed; infinite if none lives."""
        with self._lock:
            self._refresh()
            living = [e.pushed_at for e in self._replicas.get(worker_id, {}).values() if e.state.phase != "error"]
            return self._clock() - max(living) if living else math.inf

    def stop(self) -> None:
        """The application is being shut down: no worker is ready from now on."""
        with self._lock:
            self._stopping = True
            self._refresh()

    def cut(self) -> None:
        """The time for running requests is over: they are to be ended with an error."""
        with self._lock:
            self._stopping = self._cutting = True
            self._refresh()

    def subscribe(self, on_change: Callable[[], None]) -> None:
        """Call `on_change` after every change. It runs under the registry's lock, in any thread, and must not block."""
        with self._lock:
            self._subscribers.append(on_change)

    def _admit_boot(self, replicas: dict[str, _Entry], replica_id: str) -> None:
        """Make room for a process that has not pushed before: it goes to the end of the list, and it is the worker's
        next attempt, so an error of an earlier one is history."""
        replicas.pop(replica_id, None)
        for other, entry in list(replicas.items()):
            if entry.state.phase == "error":
                del replicas[other]

    def _refresh(self) -> Snapshot:
        """Drop who is silent; a new version, and a call to every subscriber, if anything has changed."""
        now = self._clock()
        for replicas in self._replicas.values():
            for replica_id in [key for key, entry in replicas.items() if entry.expires_at < now]:
                del replicas[replica_id]
        workers, old = self._fold(), self._snapshot
        if (workers, self._stopping, self._cutting) != (old.workers, old.stopping, old.cutting):
            self._snapshot = Snapshot(
                version=old.version + 1,
                workers=workers,
                stopping=self._stopping,
                cutting=self._cutting,
                hub_boot_id=old.hub_boot_id,
            )
            for on_change in self._subscribers:
                on_change()
        return self._snapshot

    def _fold(self) -> tuple[WorkerState, ...]:
        return tuple(
            fold(
                worker_id,
                wanted,
                [entry.state for entry in self._replicas[worker_id].values()],
                was_ready=worker_id in self._was_ready,
                stopping=self._stopping,
            )
            for worker_id, wanted in self._desired_replicas.items()
        )
