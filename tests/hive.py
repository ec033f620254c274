"""The stand-in hive on a real socket, for tests, with a behaviour that changes while it runs."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rbee_serve.hub.orchestrator.fake_hive import FakeHive, build_hive

Behaviour = Literal["good", "refuse", "hang", "redirect", "forget", "trickle", "nonsense"]


class RunningHive:
    """Where it is and what it has received. `behaviour` may be set at any time."""

    def __init__(self, hive: FakeHive) -> None:
        self.url = ""
        self.behaviour: Behaviour = "good"
        self.trapped = 0
        """Calls that followed a redirect."""
        self._hive = hive

    def ready(self, worker_id: str) -> list[dict[str, Any]]:
        """The ready callbacks of a worker."""
        return [message for _, message in self._messages("/v1/workers/ready", worker_id)]

    def heartbeats(self, worker_id: str) -> list[dict[str, Any]]:
        """The heartbeats of a worker."""
        return [message for _, message in self._messages("/v1/heartbeat", worker_id)]

    def beats_at(self, worker_id: str, since: float) -> list[float]:
        """When its heartbeats came, on the monotonic clock."""
        return [at for at, _ in self._messages("/v1/heartbeat", worker_id) if at >= since]

    @property
    def wrong(self) -> list[str]:
        """What was wrong with any message."""
        return [fault for received in self._hive.messages for fault in received.wrong]

    def _messages(self, path: str, worker_id: str) -> list[tuple[float, dict[str, Any]]]:
        messages = [
            (received.at, json.loads(received.body)) for received in self._hive.messages if received.path == path
        ]
        return [(at, message) for at, message in messages if message.get("worker_id") == worker_id]

    def misbehaving(self, hive: ASGIApp) -> ASGIApp:
        """`hive`, whose answers are as `behaviour` says. It takes note of every message all the same."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await hive(scope, receive, send)
                return
            if scope["path"] == "/trap":
                self.trapped += 1
            behaviour = self.behaviour
            if behaviour == "forget":
                self._hive.known.clear()

            async def answer(message: Message) -> None:
                if behaviour in ("good", "forget"):
                    await send(message)

            await hive(scope, receive, answer)
            await self._misbehave(behaviour, send)

        return app

    async def _misbehave(self, behaviour: Behaviour, send: Send) -> None:
        async def begin(status: int, *headers: tuple[bytes, bytes]) -> None:
            await send({"type": "http.response.start", "status": status, "headers": list(headers)})

        async def body(data: bytes, more: bool = False) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        match behaviour:
            case "refuse":
                await begin(503)
                await body(b"no")
            case "redirect":
                await begin(307, (b"location", f"{self.url}/trap".encode()))
                await body(b"")
            case "hang":
                await asyncio.sleep(30)
            case "trickle":
                await begin(200)
                for _ in range(600):
                    await body(b"x", more=True)
                    await asyncio.sleep(0.05)
            case "nonsense":
                await begin(200, (b"content-type", b"application/json"), (b"x-odd", b"\xff\xfe"))
                await body(b"\x00<html>{" * 100_000)


@contextmanager
def running_hive() -> Iterator[RunningHive]:
    """A stand-in that runs while the block does."""
    hive = FakeHive(say=lambda line: None)
    running = RunningHive(hive)
    config = uvicorn.Config(
        running.misbehaving(build_hive(hive)),
        host="127.0.0.1",
        port=0,
        log_level="critical",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    running.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield running
    server.should_exit = True
    thread.join(timeout=5)
