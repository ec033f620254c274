"""The ports of connections between nodes: `RBEE_SERVE_PORTS`, for a firewall that has to know them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rbee_serve.errors import ConfigurationError

VARIABLE = "RBEE_SERVE_PORTS"
ANY_PORT = range(1)
"""Port 0: the system chooses."""
FIRST, LAST = 1024, 65535
"""The ports that need no root."""


def port_range(environ: Mapping[str, str]) -> range:
    """The ports in the order in which they are tried: `ANY_PORT` without the variable, else those of `FIRST-LAST`, both
    included. Each replica takes one at a node's address, and so does the hub. Raises `ConfigurationError`."""
    given = environ.get(VARIABLE, "")
    if not given:
        return ANY_PORT
    match = re.fullmatch(r"([0-9]{1,5})-([0-9]{1,5})", given)
    if match is None or not FIRST <= int(match[1]) <= int(match[2]) <= LAST:
        raise ConfigurationError(
            f"{VARIABLE}={given} is no range of ports; set the first and the last one, such as 20000-20100, between "
            f"{FIRST} and {LAST}"
        )
    return range(int(match[1]), int(match[2]) + 1)
