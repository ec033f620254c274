"""Our line to the hub, the deployment that knows the state of all workers."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any

from rbee_serve.state import Snapshot

ANSWER_S = 3.0
"""How long a call may take."""


class HubClient:
    """Calls the hub's methods. Every one raises when there is no hub or it does not answer in `ANSWER_S`."""

    def __init__(self, app_name: str) -> None:
        self._app_name = app_name
        self._handle: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        """Make the first call, which takes a second, so that a stop need not. Failure is no harm."""
        with suppress(Exception):
            self.snapshot()

    def snapshot(self) -> Snapshot:
        """All workers at this moment."""
        snapshot = self._call("snapshot")
        assert isinstance(snapshot, Snapshot)
        return snapshot

    def stop(self) -> None:
        """Nothing is ready from now on and new work is refused."""
        self._call("drain")

    def cut(self) -> None:
        """End the streams that are still open, each with an error that says why."""
        self._call("abort")

    def _call(self, method: str) -> Any:
        async def call() -> Any:
            from ray import serve

            if self._handle is None:
                self._handle = serve.get_deployment_handle("hub", self._app_name)
            return await getattr(self._handle, method).remote()

        # With the throughput setting a handle lives in an event loop. It waits without end for a deployment that is not
        # there yet and for a Ray that is not there any more, and may do so without letting go of the loop.
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="rbee-serve-hub", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(ANSWER_S)
