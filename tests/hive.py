"""The stand-in hive on a real socket, for tests."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from rbee_serve.orchestrator.stand_in_hive import StandInHive, build_hive


class RunningHive:
    """Where it is and what it has received."""

    def __init__(self, url: str, hive: StandInHive) -> None:
        self.url = url
        self._hive = hive

    def ready(self, worker_id: str) -> list[dict[str, Any]]:
        """The ready callbacks of a worker."""
        return self._messages("/v1/workers/ready", worker_id)

    def heartbeats(self, worker_id: str) -> list[dict[str, Any]]:
        """The heartbeats of a worker."""
        return self._messages("/v1/heartbeat", worker_id)

    @property
    def wrong(self) -> list[str]:
        """What was wrong with any message."""
        return [fault for received in self._hive.messages for fault in received.wrong]

    def _messages(self, path: str, worker_id: str) -> list[dict[str, Any]]:
        messages = [json.loads(received.body) for received in self._hive.messages if received.path == path]
        return [message for message in messages if message.get("worker_id") == worker_id]


@contextmanager
def running_hive() -> Iterator[RunningHive]:
    """A stand-in that runs while the block does."""
    hive = StandInHive(say=lambda line: None)
    server = uvicorn.Server(uvicorn.Config(build_hive(hive), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield RunningHive(f"http://127.0.0.1:{port}", hive)
    server.should_exit = True
    thread.join(timeout=5)
