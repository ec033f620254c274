"""The wait for running requests before a stop."""

from __future__ import annotations

import time

from rbee_serve.state import ReplicaState, Snapshot, fold
from rbee_serve.supervisor.drain import POLL_S, QUIET_S, drain


class Hub:
    """Reports the given numbers of requests one after the other, then none; none at once after an abort."""

    def __init__(self, *busy: int) -> None:
        self.busy = list(busy)
        self.calls: list[str] = []

    def drain(self) -> None:
        self.calls.append("drain")

    def abort(self) -> None:
        self.calls.append("abort")
        self.busy.clear()

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
        worker = fold("a", 1, [replica], was_ready=True, stopping=bool(self.calls))
        return Snapshot(version=1, workers=(worker,), stopping=bool(self.calls))


def test_running_and_queued_requests_are_waited_for() -> None:
    hub, shown, began = Hub(3, 3, 1, 0), list[str](), time.monotonic()
    assert drain(hub, shown.append) == 0
    assert hub.calls == ["drain"]
    assert QUIET_S < time.monotonic() - began < QUIET_S + 2
    assert shown == ["3 requests still running; waiting up to 18 s (a second signal stops at once)"]


def test_requests_that_do_not_finish_in_time_are_aborted() -> None:
    hub, shown = Hub(*[1] * 100), list[str]()
    assert drain(hub, shown.append, max_drain_s=0.5) == 1
    assert hub.calls == ["drain", "abort"]
    assert shown[-1] == "1 request did not finish in 0 s and will be cut"


def test_a_request_between_two_reports_is_waited_for_too() -> None:
    hub, began = Hub(0, 0, 0, 2, 0), time.monotonic()
    assert drain(hub, list[str]().append) == 0
    assert time.monotonic() - began > QUIET_S + 2 * POLL_S


def test_a_hub_that_has_gone_is_not_waited_for() -> None:
    class Gone(Hub):
        def drain(self) -> None:
            raise TimeoutError

    shown: list[str] = []
    assert drain(Gone(5), shown.append) == 0
    assert shown == ["the hub does not respond (TimeoutError), so running requests are cut"]
