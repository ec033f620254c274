"""How many connections the process may open."""

from __future__ import annotations

import logging
import resource
from contextlib import suppress
from pathlib import Path

from rbee_serve.ingress.http_server.acceptor import MAX_SURPLUS

logger = logging.getLogger(__name__)

DEFAULT_MAX_CONNECTIONS = 10_000
RESERVE = 256
"""File descriptors for everything else that the process opens later: connections to replicas, files, Ray's own."""


def allowed_connections(configured: int | None) -> int:
    """The configured number of connections, or the default one, and never more than the limit on open files leaves.

    The soft limit is raised as far as needed and allowed.
    """
    connections = configured or DEFAULT_MAX_CONNECTIONS
    other = sum(1 for _ in Path("/dev/fd").iterdir()) + RESERVE + MAX_SURPLUS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + other
    if soft != resource.RLIM_INFINITY and soft < needed:
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = min(needed, soft)
    allowed = max(1, needed - other)
    if configured is not None and allowed < configured:
        logger.warning(
            "limits.max_connections is %d, but the limit on open files allows %d; raise it with ulimit -n",
            configured,
            allowed,
        )
    return allowed
