"""Whether anything is still tried for a worker that takes no requests, and why it takes none.

Ray Serve decides that (2.60, `deployment_state.py`, with `max_constructor_retry_count=1`):

- Until one replica of the deployed version has become healthy, the first failure of a constructor is final: Serve
  starts no further replica. Those that it has started already go on, and one that becomes healthy makes it try again.
- Afterwards it replaces a replica that has died or fails its health checks, and one whose constructor fails, for ever
  and without a pause (`rbee_serve/replica/loading.py` adds one).
- A new deployment starts from the first rule.
- Its status alone does not distinguish the two: `DEPLOY_FAILED` and `UNHEALTHY` occur in either. It has given up
  where it has no replica either, in any state.

So the hub reads Serve's status, but only while a worker is down. Until then, a worker of which no replica has ever
served counts as given up as soon as as many replicas as desired have reported an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rbee_serve.deploy_status import DeploymentStatus
from rbee_serve.state import ReplicaState

SETTLED_S = 3.0
"""A status of Ray Serve counts when a query that began so long after the first response returned the same: Serve
notices a failure within a second, and starts the next replica a moment after it has removed the last one. While its
controller hangs there is no response, and nothing counts."""
WAITING_S = 10.0
"""A replica that Serve has been starting for so long and that has sent no update waits for something."""
WAITS = "its process has not started yet, free CPUs or GPUs may be missing"

ENDED = "its process has ended"
ENDED_IN_LOAD = "its process ended during the load; its log, or the kernel's where memory was short, has the reason"
SILENT = "its process does not respond"
UNHEALTHY = "its engine is dead or hangs"
MAX_REASON = 300
"""Characters of a reason that is repeated with every refusal."""


@dataclass(slots=True)
class _Verdict:
    """What Ray Serve has reported since `since`, by queries of which the last began at `queried_at`."""

    given_up: bool
    since: float
    queried_at: float

    @property
    def counts(self) -> bool:
        return self.queried_at - self.since >= SETTLED_S


class Recovery:
    """Of one worker. `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._verdict: _Verdict | None = None
        self._starting_since: float | None = None
        self.was_ready = False
        """Whether a replica has served."""
        self.lost: str | None = None
        """Why a replica was lost, or could not be loaded; None once one serves again."""

    def begin(self) -> None:
        """A process has started: Serve's status was about an earlier one."""
        self._verdict = self._starting_since = None

    def serve(self) -> None:
        """A replica serves that did not before."""
        self.begin()
        self.was_ready = True
        self.lost = None

    def fail(self, state: ReplicaState) -> None:
        """A replica reports that it has failed, or that its engine is unhealthy."""
        self._verdict = None
        self.lost = (state.error or UNHEALTHY).removeprefix(f"worker {state.worker_id}: ")[:MAX_REASON]

    def lose(self, state: ReplicaState, reason: str) -> None:
        """A replica is gone. What it has reported about itself explains more than `reason`."""
        self._verdict = None
        if state.serves or state.phase == "loading":
            self.lost = reason

    def observe(self, status: DeploymentStatus, queried_at: float) -> None:
        """Ray Serve's status, by a query that began at `queried_at`."""
        self.was_ready |= status.was_healthy
        now = self._clock()
        if self._verdict is None or self._verdict.given_up != status.given_up:
            self._verdict = _Verdict(status.given_up, now, queried_at)
        else:
            self._verdict.queried_at = queried_at
        if not status.starting:
            self._starting_since = None
        elif self._starting_since is None:
            self._starting_since = now

    def given_up(self, errors: int, desired_replicas: int) -> bool:
        """Whether nothing more is tried. `errors` replicas have reported an error, and none serves."""
        if self._verdict is not None and self._verdict.counts:
            return self._verdict.given_up
        return not self.was_ready and errors >= max(1, desired_replicas)

    @property
    def waits_for(self) -> str | None:
        """What the start of a replica waits for, while none has sent an update."""
        since = self._starting_since
        return WAITS if since is not None and self._clock() - since >= WAITING_S else None
