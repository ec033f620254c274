"""An orchestrator that changes how it misbehaves."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rbee_serve.hub.orchestrator.fake_hive import FakeHive, build_hive

MODES = ("good", "down", "slow", "refuse", "forget", "redirect", "nonsense", "hang")
HEARTBEAT_S = 5.0
"""Seconds between heartbeats in a soak: more of them than by default."""
SLOW_S = 4.0
"""A slow response; the hub waits for 5 s."""


class Hive:
    """A fake hive at `url`. `mode` may be set at any time, `down` included."""

    def __init__(self) -> None:
        self.mode = "good"
        self.hive = FakeHive(log=lambda line: None)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.trapped = 0
        """Messages that followed a redirect."""

    def faults(self) -> list[str]:
        """Messages that break a rule of the protocol."""
        wrong = [f"{message.path}: {fault}" for message in self.hive.messages for fault in message.wrong]
        return wrong + (["a message followed a redirect"] if self.trapped else [])

    def known(self) -> set[str]:
        """Workers that have sent their ready callback, and at least one heartbeat after it."""
        return {worker_id for worker_id, known in self.hive.known.items() if known.heartbeats}

    def messages(self) -> int:
        """Messages received in all."""
        return len(self.hive.messages)

    def heard_from(self) -> set[str]:
        """Workers of which any message came."""
        return {str(json.loads(message.body).get("worker_id")) for message in self.hive.messages}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen while the block runs, except while the mode is `down`."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def misbehave(self, rng: random.Random, stop: asyncio.Event) -> dict[str, int]:
        """Change the mode every 10 to 30 s until `stop`, then be good; how often each mode came."""
        counts = dict.fromkeys(MODES, 0)
        while not stop.is_set():
            self.mode = rng.choice(MODES)
            counts[self.mode] += 1
            try:
                await asyncio.wait_for(stop.wait(), rng.uniform(10, 30))
            except TimeoutError:
                continue
        self.mode = "good"
        return counts

    async def _run(self) -> None:
        while True:
            if self.mode == "down":
                await asyncio.sleep(0.2)
                continue
            config = uvicorn.Config(
                self._misbehaving(build_hive(self.hive)),
                host="127.0.0.1",
                port=self.port,
                log_level="critical",
                lifespan="off",
                timeout_graceful_shutdown=0,
            )
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server._serve())  # `serve` would take the signals of this process
            try:
                while self.mode != "down" and not (await asyncio.wait([serving], timeout=0.2))[0]:
                    pass
            finally:
                server.should_exit = True
                server.force_exit = True
                await asyncio.gather(serving, return_exceptions=True)

    def _misbehaving(self, hive: ASGIApp) -> ASGIApp:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await hive(scope, receive, send)
                return
            self.trapped += scope["path"] == "/trap"
            mode = self.mode
            if mode == "forget":
                self.hive.known.clear()

            async def respond(message: Message) -> None:
                if mode in ("good", "forget", "slow"):
                    await send(message)

            if mode == "slow":
                await asyncio.sleep(SLOW_S)
            await hive(scope, receive, respond)
            await self._instead(mode, send)

        return app

    async def _instead(self, mode: str, send: Send) -> None:
        async def answer(status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
            await send({"type": "http.response.start", "status": status, "headers": list(headers)})
            await send({"type": "http.response.body", "body": body})

        match mode:
            case "refuse":
                await answer(503, b"no")
            case "redirect":
                await answer(307, b"", (b"location", f"{self.url}/trap".encode()))
            case "nonsense":
                await answer(200, b"\x00<html>{" * 100_000, (b"content-type", b"application/json"))
            case "hang":
                await asyncio.sleep(20)
