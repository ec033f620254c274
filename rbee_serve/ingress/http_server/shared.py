"""What all connections of a listener share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from time import monotonic

from uvicorn.server import ServerState

from rbee_serve.config import LimitsConfig
from rbee_serve.errors import HeaderTimeout
from rbee_serve.ingress.cors import Cors
from rbee_serve.ingress.http_server.connection_timer import Clock
from rbee_serve.ingress.http_server.refusal import RefusalLog

CROWDED = 0.9
CROWDED_KEEP_ALIVE_S = 2.0
"""Where this share of the connections is in use, idle ones are closed after that time, as others need them more."""


@dataclass
class Shared:
    """Limits, time and counts. `keep_alive_timeout_s`: how long an idle connection stays open; `max_connections`: how
    many there may be; `cors`: the pages that may read refusals."""

    limits: LimitsConfig
    keep_alive_timeout_s: float
    max_connections: int
    loop: asyncio.AbstractEventLoop
    cors: Cors = field(default_factory=Cors)
    state: ServerState = field(default_factory=ServerState)
    clock: Clock = field(default_factory=lambda: Clock(monotonic()))
    refusals: RefusalLog = field(default_factory=RefusalLog)
    stopping: bool = False

    def keep_alive_s(self) -> float:
        """How long an idle connection stays open now."""
        crowded = len(self.state.connections) >= CROWDED * self.max_connections
        return min(CROWDED_KEEP_ALIVE_S, self.keep_alive_timeout_s) if crowded else self.keep_alive_timeout_s

    def header_timeout(self) -> HeaderTimeout:
        """The error for headers that are too slow."""
        return HeaderTimeout(f"the headers did not arrive in {self.limits.header_timeout_s:g} s; send them at once")

    @property
    def too_large(self) -> str:
        """The sentence for headers that are too large."""
        size = self.limits.max_header_bytes
        return f"the request line and headers are larger than {size} bytes (limits.max_header_bytes); send fewer"

    @property
    def too_many(self) -> str:
        """The sentence for a connection too many."""
        return "the server has as many connections as it may have (limits.max_connections); try again soon"
