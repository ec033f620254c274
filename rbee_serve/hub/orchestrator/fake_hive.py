"""A stand-in for rbee-hive, for people who integrate.

    python -m rbee_serve.hub.orchestrator.fake_hive --port 9200

It takes the messages of rbee-serve, checks every field and prints a line for each:

    14:02:11  llm-1  ready on cuda:0 with 3.1 GB at http://box:8000/workers/llm-1
    14:02:41  llm-1  healthy, 30.0 s after the last

Flags make it misbehave: `--forget-after`, `--delay`, `--status`.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rbee_serve.hub.orchestrator.message_schemas import (
    Heartbeat,
    LoadFailure,
    Message,
    Ready,
    WorkerHeartbeat,
    faults,
)

SILENCE_S = 90.0
"""An orchestrator gives a worker up after this long without a heartbeat."""

FORMS: dict[str, type[Message]] = {
    "/v1/workers/ready": Ready,
    "/v1/heartbeat": Heartbeat,
    "/v1/worker-heartbeat": WorkerHeartbeat,
    "/v1/workers/error": LoadFailure,
}
"""Each route and the message that it takes. The last one is a target for `on_error_url`."""


@dataclass(frozen=True)
class Received:
    """A message as it came (`at` on a monotonic clock), how it was answered, and what was wrong with it."""

    at: float
    path: str
    body: bytes
    status: int
    wrong: tuple[str, ...] = ()


@dataclass
class _Known:
    """A worker that has announced itself."""

    heard_at: float
    beats: int = 0
    missed: bool = False


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)  # noqa: T201 - it talks to a person


@dataclass
class FakeHive:
    """What the stand-in knows and how it misbehaves: it forgets a worker after `forget_after` heartbeats, answers
    after `delay_s` seconds, and with `status` whatever comes."""

    forget_after: int | None = None
    delay_s: float = 0.0
    status: int | None = None
    say: Callable[[str], None] = _say
    clock: Callable[[], float] = time.monotonic
    messages: list[Received] = field(default_factory=list)
    """Everything that has come, in order."""
    known: dict[str, _Known] = field(default_factory=dict)

    def receive(self, path: str, body: bytes) -> Received:
        """Check a message, remember it, say so, and decide on the answer."""
        wrong: tuple[str, ...] = ()
        try:
            status = self._take(FORMS[path].model_validate_json(body))
        except ValidationError as exc:
            wrong, status = tuple(faults(exc)), 400
            self.say(f"WRONG  {path}  " + "; ".join(wrong))
        received = Received(self.clock(), path, body, self.status or status, wrong)
        self.messages.append(received)
        return received

    def watch(self) -> None:
        """Say once of every worker that it has been silent for too long."""
        for worker_id, known in self.known.items():
            seconds_since_last_push = self.clock() - known.heard_at
            if seconds_since_last_push > SILENCE_S and not known.missed:
                known.missed = True
                self.say(f"{worker_id}  SILENT for {seconds_since_last_push:.0f} s: a hive would give it up now")

    def _take(self, message: Message) -> int:
        match message:
            case Ready():
                if not self.status:
                    self.known[message.worker_id] = _Known(self.clock())
                where = f"{message.backend}:{message.device} with {message.vram_bytes / 1e9:.1f} GB at {message.url}"
                self.say(f"{message.worker_id}  ready on {where}")
                return 200
            case Heartbeat():
                return self._beat(message.worker_id, message.health_status)
            case WorkerHeartbeat():
                return self._beat(message.worker.id, message.worker.status)
            case LoadFailure():
                self.say(f"{message.worker_id}  LOAD FAILED  {message.code}: {message.message!r}")
                return 200

    def _beat(self, worker_id: str, health: str) -> int:
        known = self.known.get(worker_id)
        if known is None:
            self.say(f"{worker_id}  {health}, but UNKNOWN here: answering 404")
            return 404
        now = self.clock()
        self.say(f"{worker_id}  {health}, {now - known.heard_at:.1f} s after the last")
        known.heard_at, known.beats, known.missed = now, known.beats + 1, False
        if known.beats == self.forget_after:
            del self.known[worker_id]
            self.say(f"{worker_id}  forgotten, as asked for")
        return 200


def build_hive(hive: FakeHive) -> Starlette:
    """The stand-in as an application. What came is in `hive.messages`."""

    async def receive(request: Request) -> Response:
        received = hive.receive(request.url.path, await request.body())
        await asyncio.sleep(hive.delay_s)
        return JSONResponse({"errors": received.wrong} if received.wrong else {}, received.status)

    async def watch() -> None:
        while True:
            hive.watch()
            await asyncio.sleep(1)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(watch())
        yield
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching

    routes = [Route(path, receive, methods=["POST"]) for path in FORMS]
    return Starlette(routes=routes, lifespan=lifespan)


def main(arguments: list[str] | None = None) -> None:
    """Run the stand-in until Ctrl+C."""
    parser = argparse.ArgumentParser(prog="stand_in_hive", description="A stand-in for rbee-hive.")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (%(default)s)")
    parser.add_argument("--port", type=int, default=9200, help="where to listen (%(default)s)")
    parser.add_argument("--forget-after", type=int, metavar="N", help="forget a worker after N of its heartbeats")
    parser.add_argument("--delay", type=float, default=0.0, metavar="S", help="answer S seconds late")
    parser.add_argument("--status", type=int, metavar="N", help="answer everything with this status, such as 503")
    options: Any = parser.parse_args(arguments)
    hive = FakeHive(options.forget_after, options.delay, options.status)
    _say(f"callback_url: http://{options.host}:{options.port}/v1/workers/ready")
    uvicorn.run(build_hive(hive), host=options.host, port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
