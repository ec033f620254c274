"""The client of the hub, the deployment that holds the state of all workers."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any

from rbee_serve.state import Snapshot

TIMEOUT_S = 3.0
"""How long a call may take."""


class HubClient:
    """Calls the hub's methods. Each raises where there is no hub, or it does not respond within `TIMEOUT_S`."""

    def __init__(self, app_name: str) -> None:
        self._app_name = app_name
        self._handle: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        """Make the first call, which takes a second, so that a stop is quick. A failure is ignored."""
        with suppress(Exception):
            self.snapshot()

    def snapshot(self) -> Snapshot:
        """All workers at this moment."""
        snapshot = self._call("snapshot")
        assert isinstance(snapshot, Snapshot)
        return snapshot

    def drain(self) -> None:
        """Report not ready, and refuse new requests, from now on."""
        self._call("drain")

    def abort(self) -> None:
        """End the open streams, each with an error and its reason."""
        self._call("abort")

    def _call(self, method: str) -> Any:
        async def call() -> Any:
            from ray import serve

            if self._handle is None:
                self._handle = serve.get_deployment_handle("hub", self._app_name)
            return await getattr(self._handle, method).remote()

        # With the throughput setting a handle needs an event loop. It waits without end for a deployment that has not
        # started and for a Ray that has gone, and may block the loop meanwhile.
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="rbee-serve-hub", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(TIMEOUT_S)
