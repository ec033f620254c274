"""Which failures of a message to the orchestrator are logged: it may be down for days."""

from __future__ import annotations

import logging

from rbee_serve.hub.orchestrator.callback_client import CallbackResult, redacted

logger = logging.getLogger(__name__)

REPEAT_S = 300.0
"""A failure that goes on for the same reason is logged once in so long, with the number of attempts."""


class DeliveryLog:
    """Of one kind of message of one worker to one URL: a line for each new reason, and one when it is accepted again.
    `CallbackClient` logs the refused credentials, once for all workers."""

    def __init__(self, worker_id: str, message: str, url: str) -> None:
        self._about = f"worker {worker_id}: {redacted(url)}"
        self._message = message
        self._failures = 0
        self._unlogged = 0
        self._logged_at: dict[str, float] = {}
        """When each reason was last logged, since it failed first."""

    def accepted(self) -> None:
        """The receiver has accepted the message."""
        if self._failures:
            times = "one failure" if self._failures == 1 else f"{self._failures} failures"
            logger.warning("%s has accepted the %s after %s", self._about, self._message, times)
        self._failures = self._unlogged = 0
        self._logged_at.clear()

    def failed(self, result: CallbackResult, now: float, what_next: str) -> None:
        """It has not, at `now` in monotonic seconds."""
        if result.refused:
            return
        self._failures += 1
        reason = str(result)
        if now - self._logged_at.get(reason, -REPEAT_S) < REPEAT_S:
            self._unlogged += 1
            return
        again = f" ({self._unlogged} more since the last line)" if self._unlogged else ""
        logger.warning("%s did not accept the %s: %s%s; %s", self._about, self._message, reason, again, what_next)
        self._logged_at[reason], self._unlogged = now, 0
