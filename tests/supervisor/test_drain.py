"""The wait for running requests before a stop."""

from __future__ import annotations

import time

from rbee_serve.state import ReplicaState, Snapshot, fold
from rbee_serve.supervisor.drain import QUIET_S, drain


class Hub:
    """Tells of one request after the other, then of none."""

    def __init__(self, *busy: int) -> None:
        self.busy = list(busy)
        self.stopping = False

    def mark_stopping(self) -> None:
        self.stopping = True

    def snapshot(self) -> Snapshot:
        running = self.busy.pop(0) if self.busy else 0
        replica = ReplicaState(
            worker_id="a",
            replica_id="1",
            boot_id="b",
            phase="ready",
            backend="cpu",
            running=running // 2,
            queued=-(-running // 2),
        )
        worker = fold("a", 1, [replica], was_ready=True, stopping=self.stopping)
        return Snapshot(version=1, workers=(worker,), stopping=self.stopping)


def test_running_and_queued_requests_are_waited_for() -> None:
    hub, said, began = Hub(3, 3, 1, 0), list[str](), time.monotonic()
    assert drain(hub.mark_stopping, hub.snapshot, said.append) == 0
    assert hub.stopping
    assert QUIET_S < time.monotonic() - began < QUIET_S + 2
    assert said == ["3 requests still running; waiting up to 20 s (a second signal stops at once)"]


def test_what_does_not_finish_in_time_is_told() -> None:
    hub, said = Hub(*[1] * 100), list[str]()
    assert drain(hub.mark_stopping, hub.snapshot, said.append, longest_s=0.5) == 1
    assert said[-1] == "1 request did not finish in 0 s and will be cut"


def test_a_hub_that_is_gone_is_not_waited_for() -> None:
    def gone() -> None:
        raise TimeoutError

    hub, said = Hub(5), list[str]()
    assert drain(gone, hub.snapshot, said.append) == 0
    assert said == []
