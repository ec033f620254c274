"""Since when a connection has been in its state, in the coarse time of the sweep."""

from __future__ import annotations

from dataclasses import dataclass

LINGER_S = 5.0
"""Seconds in which input after a response is discarded, so that the client reads the response."""
SURPLUS_S = 2.0
"""Seconds for the headers on a connection over the bound."""
MAX_STALLED_READER_S = 30.0
MIN_READ_BYTES_PER_S = 16 * 1024
"""As in the replica: a client that is behind has to take something every `MAX_STALLED_READER_S`, and all that is there
within that time and the time that it takes at this rate."""


@dataclass(slots=True)
class Clock:
    """The time of the last sweep, and the seconds to the next: reading it costs less than a call for each piece of
    input."""

    now: float
    interval_s: float = 1.0


class ConnectionTimer:
    """The times of one connection."""

    __slots__ = (
        "_clock",
        "_progress_at",
        "_since",
        "_stalled_bytes",
        "_stalled_since",
        "_surplus",
        "_unsent_bytes",
        "ending",
    )

    def __init__(self, clock: Clock, surplus: bool) -> None:
        self._clock = clock
        self._surplus = surplus
        self._since = clock.now
        self._stalled_since: float | None = None
        self._stalled_bytes = self._unsent_bytes = 0
        self._progress_at = clock.now
        self.ending = False
        """Whether only the rest of the output is sent."""

    def begin(self) -> None:
        """A new state begins, before the next sweep: no time limit ends early."""
        self._since = self._clock.now + self._clock.interval_s

    def end(self) -> None:
        """The last state begins."""
        self.ending = True
        self._since = self._clock.now

    def output_taken(self) -> None:
        """The client has taken output."""
        self._stalled_since = None

    def over(self, limit_s: float) -> bool:
        """Whether the state has lasted that long."""
        return self._clock.now - self._since > (min(limit_s, SURPLUS_S) if self._surplus else limit_s)

    def lingered(self) -> bool:
        """Whether input was discarded for long enough."""
        return self._clock.now - self._since > LINGER_S

    def stalled(self, unsent_bytes: int, only_idle: bool) -> bool:
        """Whether the client takes its output too slowly. `only_idle`: there is little, and more may be added."""
        if not unsent_bytes or only_idle:
            self._stalled_since = None
            return False
        now = self._clock.now
        if self._stalled_since is None:
            self._stalled_since, self._stalled_bytes = now, unsent_bytes
        elif unsent_bytes == self._unsent_bytes:
            allowed_s = MAX_STALLED_READER_S + self._stalled_bytes / MIN_READ_BYTES_PER_S
            return now - self._progress_at > MAX_STALLED_READER_S or now - self._stalled_since > allowed_s
        self._unsent_bytes, self._progress_at = unsent_bytes, now
        return False
