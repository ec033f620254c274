"""A small real server of the rbee protocol that breaks it where the name of a worker says so."""

from __future__ import annotations

import asyncio
import gzip
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from rbee_serve.errors import InvalidRequest, Violation, WorkerError, WorkerLoading, WorkerNotFound, WorkerUnhealthy
from rbee_serve.events import End, Error, Event, Output, Started, StopReason, to_json
from rbee_serve.outputs import OutputValue, TokenOutput
from rbee_serve.sse import DONE, KEEP_ALIVE, MEDIA_TYPE, frame

TOKEN = "s3cret"
STARTED = Started(job_id="job-1", model="m", started_at="2026-01-01T00:00:00.000+00:00")
TOKENS = [Output(TokenOutput(t=text, i=i)) for i, text in enumerate(["Hé", "", "🐝\n"])]
END = End(tokens_out=3, decode_time_ms=1, stop_reason=StopReason.EOS)
FILE = b"RIFF\x00\xff not really a sound"
LOST = Error(code="WORKER_LOST", message="gone", retriable=True)


class PatchOutput(OutputValue, frozen=True, kw_only=True, tag="patch"):
    patch: str
    i: int


PATCH = Output(PatchOutput(patch="AAAA", i=0))


class Server:
    """The last request body, whether a stream was closed early, and the number of requests for readiness."""

    def __init__(self) -> None:
        self.url = ""
        self.body: dict[str, Any] = {}
        self.disconnected = threading.Event()
        self.ready_requests = 0


server_state = Server()


def bodies(worker: str) -> list[bytes]:
    """The chunks of a worker's stream, by its name."""
    events: list[Event[Any]] = [STARTED, *TOKENS, END]
    whole = b"".join(map(frame, map(to_json, events))) + DONE
    unknown = frame(b'{"type":"hologram","i":0}')
    return {
        "good": [KEEP_ALIVE + whole],
        "bytewise": [whole[i : i + 1] for i in range(len(whole))],
        "crlf": [whole.replace(b"\n", b"\r\n")],
        "unknown": [unknown + whole],
        "patch": [frame(to_json(STARTED)) + frame(to_json(PATCH)) + frame(to_json(END)) + DONE],
        "failing": [frame(to_json(STARTED)) + frame(to_json(LOST)) + DONE],
        "cut": [whole.removesuffix(DONE)],
        "garbage": [frame(b'{"type":"token"}')],
        "behind": [whole + b"\xff\xff"],
    }[worker]


async def inference(request: Request) -> Response:
    server_state.body = msgspec.json.decode(await request.body())
    if not server_state.body["stream"] and request.path_params.get("worker") == "speaks":
        return Response(FILE, media_type="audio/wav")
    if not server_state.body["stream"] and request.path_params.get("worker") == "loading":
        error = WorkerLoading("wait")
        error.retry_after_s = 17
        return refusal(error)
    if not server_state.body["stream"]:
        return JSONResponse({"text": "Hello", "stop_reason": "EOS"})
    worker = request.path_params.get("worker", "good")
    if worker == "endless":
        return StreamingResponse(endless(), media_type=MEDIA_TYPE)
    if worker == "silent":
        return StreamingResponse(silent(), media_type=MEDIA_TYPE)
    if worker == "zipped":
        packed = gzip.compress(b"".join(bodies("good")))
        return Response(packed, media_type=MEDIA_TYPE, headers={"Content-Encoding": "gzip"})
    if worker == "invalid":
        violation = Violation("max_tokens", "<= 2048", "must be at most 2048", 4096, has_value=True)
        return refusal(InvalidRequest.because([violation, Violation("prompt", "required", "is required")]))
    if worker == "loading":
        error = WorkerLoading("wait")
        error.progress_url = "/p"
        error.retry_after_s = 17
        return refusal(error)
    if worker == "not-up":
        return PlainTextResponse("Bad Gateway", 404)
    if worker == "proxy":
        return PlainTextResponse("Bad Gateway", 502, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"})
    if worker == "strange":
        return PlainTextResponse("<html>", 418)
    if worker == "unknown-code":
        return JSONResponse({"code": "NEW_CODE", "message": "news", "retriable": False}, 400)

    async def chunks() -> AsyncGenerator[bytes, None]:
        for chunk in bodies(worker):
            yield chunk

    return StreamingResponse(chunks(), media_type=MEDIA_TYPE)


async def endless() -> AsyncGenerator[bytes, None]:
    try:
        yield frame(to_json(STARTED))
        while True:
            yield frame(to_json(TOKENS[0]))
            await asyncio.sleep(0.01)
    finally:
        server_state.disconnected.set()


async def silent() -> AsyncGenerator[bytes, None]:
    yield frame(to_json(STARTED))
    await asyncio.sleep(5)


def refusal(error: WorkerError) -> Response:
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return JSONResponse(error.to_json(), error.http_status, headers)


async def ready(request: Request) -> Response:
    server_state.ready_requests += 1
    worker = request.path_params.get("worker")
    if worker == "never":
        return JSONResponse({"ready": False, "state": "loading"})
    if worker == "strange":
        return JSONResponse({"ready": "yes"})
    if worker == "nobody":
        return refusal(WorkerNotFound("no such worker"))
    is_ready = server_state.ready_requests >= 3
    listed = [{"id": "llm", "ready": is_ready, "state": "loading", "reason": "the model is being loaded"}]
    return JSONResponse({"ready": is_ready, "workers": listed}, 200 if is_ready else 503)


async def health(request: Request) -> Response:
    return JSONResponse({"status": "unhealthy", "vram_bytes": 0}, 503)


async def workers(request: Request) -> Response:
    return JSONResponse({"workers": [described("llm"), described("echo")]})


async def info(request: Request) -> Response:
    if request.headers.get("authorization") is None:
        return JSONResponse({"error": {"code": "MISSING_API_KEY", "message": "send a token"}}, 401)
    if request.headers["authorization"] != f"Bearer {TOKEN}":
        return JSONResponse({"error": {"code": "INVALID_API_KEY", "message": "not valid"}}, 401)
    return JSONResponse(info_of(request.path_params["worker"]))


async def progress(request: Request) -> Response:
    stages = [{"stage": "downloading", "bytes_done": 1, "bytes_total": 2}]
    match request.path_params["worker"]:
        case "failing":
            stages.append({"stage": "error", "message": "no memory"})
        case "loaded":
            return refusal(WorkerUnhealthy("nothing is loading"))
        case _:
            stages.append({"stage": "ready"})
    body = b"".join(frame(msgspec.json.encode(stage)) for stage in stages) + DONE
    return Response(body, media_type=MEDIA_TYPE)


def info_of(worker: str) -> dict[str, Any]:
    """The `/info` object of a worker."""
    return {
        "id": worker,
        "model_id": "m",
        "device": "GPU-0",
        "devices": ["GPU-0", "GPU-1"],
        "port": 8000,
        "status": "ready",
        "implementation": "rbee-serve/llm",
        "version": "0.1.0",
        "vram_bytes": 5,
        "vram_source": "driver",
        "nodes": ["10.0.0.1", "10.0.0.2"],
        "later": "a field that the client does not know",
    }


def described(worker: str) -> dict[str, Any]:
    """A worker of `GET /v1/workers`."""
    replica = {"phase": "ready", "healthy": True, "devices": [0], "running": 2, "queued": 1, "capacity": 64}
    return {
        **info_of(worker),
        "url": f"http://127.0.0.1:8000/workers/{worker}",
        "type": "llm",
        "task": None,
        "outputs": ["token"],
        "capacity": 64,
        "replicas": [replica],
        "limits": {"max_tokens": {"maximum": 2048}},
    }


ROUTES = [
    Route("/v1/inference", inference, methods=["POST"]),
    Route("/v1/ready", ready),
    Route("/v1/workers", workers),
    Route("/health", health),
    Route("/workers/{worker}/v1/inference", inference, methods=["POST"]),
    Route("/workers/{worker}/v1/ready", ready),
    Route("/workers/{worker}/v1/loading/progress", progress),
    Route("/workers/{worker}/info", info),
]


@contextmanager
def serving() -> Iterator[Server]:
    """Runs the server in a thread, on a port of its own."""
    config = uvicorn.Config(Starlette(routes=ROUTES), port=0, log_level="error", lifespan="off", ws="none")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    server_state.url = f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    yield server_state
    running.should_exit = True
    running.force_exit = True
    thread.join()
