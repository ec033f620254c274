"""The stop: the server is not ready at once and refuses new requests; running ones finish, or are aborted."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from rbee_serve.state import Snapshot

MAX_DRAIN_S = 18.0
"""How long running requests may take to finish. An init system expects the end of the process within 30 s."""
ABORT_S = 2.0
"""How long aborted streams may take to send their error."""
QUIET_S = 1.2
"""How long there must have been no request: replicas report theirs twice a second."""
POLL_S = 0.2


class Hub(Protocol):
    """The methods of `HubClient` that a drain needs."""

    def snapshot(self) -> Snapshot:
        """All workers."""

    def drain(self) -> None:
        """Refuse new requests."""

    def abort(self) -> None:
        """End running requests with an error."""


def drain(hub: Hub, show: Callable[[str], None], max_drain_s: float = MAX_DRAIN_S) -> int:
    """Refuse new requests, wait for running ones, and abort those left after `max_drain_s`; returns their number.

    If the hub does not respond, the number is 0: nothing is known that could be waited for.
    """
    try:
        hub.drain()
        if busy := requests_in(hub.snapshot()):
            show(f"{count(busy)} still running; waiting up to {max_drain_s:.0f} s (a second signal stops at once)")
        left = _wait_for_quiet(hub, max_drain_s)
        if left:
            show(f"{count(left)} did not finish in {max_drain_s:.0f} s and will be cut")
            hub.abort()
            _wait_for_quiet(hub, ABORT_S)
    except Exception as exc:
        show(f"the hub does not respond ({type(exc).__name__}), so running requests are cut")
        return 0
    return left


def requests_in(snapshot: Snapshot) -> int:
    """Requests that run or wait in any replica."""
    return sum(replica.running + replica.queued for worker in snapshot.workers for replica in worker.replicas)


def count(requests: int) -> str:
    """`1 request` or `3 requests`."""
    return "1 request" if requests == 1 else f"{requests} requests"


def _wait_for_quiet(hub: Hub, timeout_s: float) -> int:
    """The number of requests at the end: 0 after `QUIET_S` without any, else those left after `timeout_s`."""
    began = quiet_since = time.monotonic()
    while True:
        time.sleep(POLL_S)
        now = time.monotonic()
        if busy := requests_in(hub.snapshot()):
            quiet_since = now
        if now - quiet_since >= QUIET_S or now - began >= timeout_s:
            return busy
