"""An event loop for callbacks: a DNS lookup that hangs holds neither a thread pool nor the stop.

`getaddrinfo` cannot be interrupted and may take a minute. asyncio runs it in a pool of threads, which a few lookups
that hang fill up, and which is joined when the process ends.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import Any

FRESH_S = 15.0
"""Calls share a lookup that is younger than this. Beside an older one a new one starts: DNS may have recovered."""
MAX_LOOKUPS = 4
"""Lookups of one name that run at once. With `FRESH_S` enough for lookups that hang for a minute each."""

_Addresses = list[tuple[Any, ...]]


class CallbackLoop(asyncio.SelectorEventLoop):
    """Runs each DNS lookup in a daemon thread of its own, at most `MAX_LOOKUPS` for one name. A lookup that outlives
    its call serves the next one."""

    def __init__(self) -> None:
        super().__init__()
        self._lookups: dict[object, dict[asyncio.Future[_Addresses], float]] = {}

    async def getaddrinfo(self, host: Any, port: Any, **hints: int) -> list[Any]:
        """As `socket.getaddrinfo`. Raises `socket.gaierror` where the name has no address."""
        lookups = self._lookups.setdefault((host, port, *hints.items()), {})
        for late in [lookup for lookup in lookups if lookup.done() and not lookup.result()]:
            del lookups[late]  # it failed when nobody waited; DNS may have recovered since
        if len(lookups) < MAX_LOOKUPS and all(self.time() - started > FRESH_S for started in lookups.values()):
            lookups[self._start(host, port, hints)] = self.time()
        while lookups:
            done, _ = await asyncio.wait(list(lookups), return_when=asyncio.FIRST_COMPLETED)
            for lookup in done:
                lookups.pop(lookup, None)
            if addresses := next(filter(None, (lookup.result() for lookup in done)), None):
                return addresses
        raise socket.gaierror(socket.EAI_NONAME, f"{host} has no address")

    def _start(self, host: Any, port: Any, hints: dict[str, int]) -> asyncio.Future[_Addresses]:
        """A lookup in a thread; its result is empty where it fails."""
        lookup: asyncio.Future[_Addresses] = self.create_future()

        def look_up() -> None:
            addresses: _Addresses = []
            with suppress(OSError, UnicodeError):  # a label of 64 characters is a UnicodeError
                addresses = list(socket.getaddrinfo(host, port, **hints))
            with suppress(RuntimeError):  # the loop is closed
                self.call_soon_threadsafe(lookup.set_result, addresses)

        threading.Thread(target=look_up, name="dns-lookup", daemon=True).start()
        return lookup
