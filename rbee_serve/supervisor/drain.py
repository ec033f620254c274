"""The stop: not ready at once, no new work, running requests finish or are told why not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from rbee_serve.state import Snapshot

LONGEST_S = 18.0
"""How long running requests may take to finish. Who stops us expects the end within 30 s."""
CUT_S = 2.0
"""How long the streams that are cut may take to say so."""
QUIET_S = 1.2
"""How long there must have been no request: replicas tell of theirs twice a second."""
POLL_S = 0.2


class Hub(Protocol):
    """What is asked of the hub: `HubClient`."""

    def snapshot(self) -> Snapshot:
        """All workers."""

    def stop(self) -> None:
        """Take no new work."""

    def cut(self) -> None:
        """End the work that runs."""


def drain(hub: Hub, say: Callable[[str], None], longest_s: float = LONGEST_S) -> int:
    """Refuse new work, wait for what runs, and cut what still runs after `longest_s`; returns how many requests.

    If the hub does not answer there is none, and nothing is known that could be waited for.
    """
    try:
        hub.stop()
        if busy := requests_in(hub.snapshot()):
            say(f"{count(busy)} still running; waiting up to {longest_s:.0f} s (a second signal stops at once)")
        left = _wait_for_quiet(hub, longest_s)
        if left:
            say(f"{count(left)} did not finish in {longest_s:.0f} s and will be cut")
            hub.cut()
            _wait_for_quiet(hub, CUT_S)
    except Exception as exc:
        say(f"the hub does not answer ({type(exc).__name__}), so requests that still run are cut")
        return 0
    return left


def requests_in(snapshot: Snapshot) -> int:
    """Requests that run or wait in any replica."""
    return sum(replica.running + replica.queued for worker in snapshot.workers for replica in worker.replicas)


def count(requests: int) -> str:
    """`1 request` or `3 requests`."""
    return "1 request" if requests == 1 else f"{requests} requests"


def _wait_for_quiet(hub: Hub, longest_s: float) -> int:
    """The number of requests at the end: 0 after `QUIET_S` without any, else what there is after `longest_s`."""
    began = quiet_since = time.monotonic()
    while True:
        time.sleep(POLL_S)
        now = time.monotonic()
        if busy := requests_in(hub.snapshot()):
            quiet_since = now
        if now - quiet_since >= QUIET_S or now - began >= longest_s:
            return busy
