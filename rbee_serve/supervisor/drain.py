"""The stop: not ready at once, no new work, running requests finish, then everything ends."""

from __future__ import annotations

import time
from collections.abc import Callable

from rbee_serve.state import Snapshot

LONGEST_S = 20.0
"""How long running requests may take to finish."""
QUIET_S = 1.2
"""How long there must have been no request: replicas tell of theirs every second."""
POLL_S = 0.2


def drain(
    mark_stopping: Callable[[], None],
    snapshot: Callable[[], Snapshot],
    say: Callable[[str], None],
    longest_s: float = LONGEST_S,
) -> int:
    """Refuse new work and wait for what runs; returns how many requests were still running after `longest_s`.

    The first two ask the hub. If it does not answer there is none, and nothing is known that could be waited for.
    """
    try:
        mark_stopping()
        busy = requests_in(snapshot())
        if busy:
            say(f"{count(busy)} still running; waiting up to {longest_s:.0f} s (a second signal stops at once)")
        deadline = time.monotonic() + longest_s
        quiet_since = time.monotonic()
        while time.monotonic() < deadline:
            time.sleep(POLL_S)
            busy = requests_in(snapshot())
            if busy:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since >= QUIET_S:
                break
    except Exception:
        return 0
    if busy:
        say(f"{count(busy)} did not finish in {longest_s:.0f} s and will be cut")
    return busy


def requests_in(snapshot: Snapshot) -> int:
    """Requests that run or wait in any replica."""
    return sum(replica.running + replica.queued for worker in snapshot.workers for replica in worker.replicas)


def count(requests: int) -> str:
    """`1 request` or `3 requests`."""
    return "1 request" if requests == 1 else f"{requests} requests"
