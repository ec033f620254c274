"""A fake rbee-hive, for integration tests and for trying out callbacks.

    python -m rbee_serve.hub.orchestrator.fake_hive --port 9200

It receives the messages of rbee-serve, validates every field and prints a line for each:

    14:02:11  llm-1  ready on cuda:0 with 3.1 GB at http://box:8000/workers/llm-1
    14:02:41  llm-1  healthy, 30.0 s after the last message

Flags make it misbehave: `--forget-after`, `--delay`, `--status`. With `--token-file` it refuses calls without that
bearer token, and with `--tls-cert` and `--tls-key` it serves https.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rbee_serve.config.secret_file import WatchedFile, read_token
from rbee_serve.errors import ConfigurationError
from rbee_serve.hub.orchestrator.message_schemas import (
    Heartbeat,
    LoadFailure,
    Message,
    Ready,
    WorkerHeartbeat,
    faults,
)

SILENCE_S = 90.0
"""An orchestrator drops a worker after this long without a heartbeat."""

MESSAGE_TYPES: dict[str, type[Message]] = {
    "/v1/workers/ready": Ready,
    "/v1/heartbeat": Heartbeat,
    "/v1/worker-heartbeat": WorkerHeartbeat,
    "/v1/workers/error": LoadFailure,
}
"""Each route and its message. The last one is a target for `on_error_url`."""


@dataclass(frozen=True)
class Received:
    """A message (`at` on a monotonic clock), the status of the response, and its faults."""

    at: float
    path: str
    body: bytes
    status: int
    wrong: tuple[str, ...] = ()


@dataclass
class _Known:
    """A worker that has sent its ready callback."""

    last_seen_at: float
    heartbeats: int = 0
    reported_silent: bool = False


def _print(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)  # noqa: T201 - its output


@dataclass
class FakeHive:
    """The state of the fake and how it misbehaves: it forgets a worker after `forget_after` heartbeats, responds
    after `delay_s` seconds, and with `status` to every message. With a `token` it refuses calls without it."""

    forget_after: int | None = None
    delay_s: float = 0.0
    status: int | None = None
    token: Callable[[], bytes] | None = None
    log: Callable[[str], None] = _print
    clock: Callable[[], float] = time.monotonic
    messages: list[Received] = field(default_factory=list)
    """All messages, in order."""
    known: dict[str, _Known] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    """The error codes of the calls that had no valid token, in order."""

    def authenticate(self, path: str, authorization: list[str]) -> str | None:
        """The error code for a call with these `Authorization` headers; None where it may pass."""
        if self.token is None:
            return None
        code = None
        if not authorization:
            code = "MISSING_API_KEY"
        elif len(authorization) > 1 or not _is_bearer(authorization[0], self.token()):
            code = "INVALID_API_KEY"
        if code is not None:
            self.refused.append(code)
            self.log(f"REFUSED  {path}  {code}")
        return code

    def receive(self, path: str, body: bytes) -> Received:
        """Validate a message, record and log it, and choose the status of the response."""
        wrong: tuple[str, ...] = ()
        try:
            status = self._accept(MESSAGE_TYPES[path].model_validate_json(body))
        except ValidationError as exc:
            wrong, status = tuple(faults(exc)), 400
            self.log(f"WRONG  {path}  " + "; ".join(wrong))
        received = Received(self.clock(), path, body, self.status or status, wrong)
        self.messages.append(received)
        return received

    def check_silence(self) -> None:
        """Log, once for each worker, that it has been silent for too long."""
        for worker_id, known in self.known.items():
            silent_s = self.clock() - known.last_seen_at
            if silent_s > SILENCE_S and not known.reported_silent:
                known.reported_silent = True
                self.log(f"{worker_id}  SILENT for {silent_s:.0f} s: a hive would drop it now")

    def _accept(self, message: Message) -> int:
        match message:
            case Ready():
                if not self.status:
                    self.known[message.worker_id] = _Known(self.clock())
                where = f"{message.backend}:{message.device} with {message.vram_bytes / 1e9:.1f} GB at {message.url}"
                self.log(f"{message.worker_id}  ready on {where}")
                return 200
            case Heartbeat():
                return self._heartbeat(message.worker_id, message.health_status)
            case WorkerHeartbeat():
                return self._heartbeat(message.worker.id, message.worker.status)
            case LoadFailure():
                self.log(f"{message.worker_id}  LOAD FAILED  {message.code}: {message.message!r}")
                return 200

    def _heartbeat(self, worker_id: str, health: str) -> int:
        known = self.known.get(worker_id)
        if known is None:
            self.log(f"{worker_id}  {health}, but UNKNOWN here: responding with 404")
            return 404
        now = self.clock()
        self.log(f"{worker_id}  {health}, {now - known.last_seen_at:.1f} s after the last message")
        known.last_seen_at, known.heartbeats, known.reported_silent = now, known.heartbeats + 1, False
        if known.heartbeats == self.forget_after:
            del self.known[worker_id]
            self.log(f"{worker_id}  forgotten, as configured")
        return 200


def _is_bearer(authorization: str, token: bytes) -> bool:
    scheme, _, sent = authorization.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(sent.strip().encode(), token)


def build_hive(hive: FakeHive) -> Starlette:
    """The fake as an ASGI application. Its messages are in `hive.messages`."""

    async def receive(request: Request) -> Response:
        if code := hive.authenticate(request.url.path, request.headers.getlist("authorization")):
            error = {"code": code, "message": "send the header Authorization: Bearer TOKEN with the hive's token"}
            return JSONResponse({"error": error}, 401, headers={"WWW-Authenticate": "Bearer"})
        received = hive.receive(request.url.path, await request.body())
        await asyncio.sleep(hive.delay_s)
        return JSONResponse({"errors": received.wrong} if received.wrong else {}, received.status)

    async def monitor() -> None:
        while True:
            hive.check_silence()
            await asyncio.sleep(1)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        monitoring = asyncio.create_task(monitor())
        yield
        monitoring.cancel()
        with suppress(asyncio.CancelledError):
            await monitoring

    routes = [Route(path, receive, methods=["POST"]) for path in MESSAGE_TYPES]
    return Starlette(routes=routes, lifespan=lifespan)


def main(arguments: list[str] | None = None) -> None:
    """Run the fake until Ctrl+C."""
    parser = argparse.ArgumentParser(
        prog="fake_hive", description="A fake rbee-hive that validates and prints messages."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=9200, help="port to listen on (%(default)s)")
    parser.add_argument("--forget-after", type=int, metavar="N", help="forget a worker after N of its heartbeats")
    parser.add_argument("--delay", type=float, default=0.0, metavar="S", help="respond S seconds late")
    parser.add_argument("--status", type=int, metavar="N", help="respond to everything with this status, such as 503")
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="refuse calls without the token in its first line"
    )
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="serve https with this certificate (PEM)")
    parser.add_argument(
        "--tls-key", type=Path, metavar="FILE", help="the certificate's key, if it is in a file of its own"
    )
    options: Any = parser.parse_args(arguments)
    try:
        token = WatchedFile(options.token_file, read_token) if options.token_file else None
        if token is not None:
            token.current()
    except ConfigurationError as exc:
        parser.error(f"--token-file: {exc}")
    hive = FakeHive(options.forget_after, options.delay, options.status, token.current if token else None)
    scheme = "https" if options.tls_cert else "http"
    _print(f"callback_url: {scheme}://{options.host}:{options.port}/v1/workers/ready")
    uvicorn.run(
        build_hive(hive),
        host=options.host,
        port=options.port,
        log_level="warning",
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
    )


if __name__ == "__main__":
    main()
