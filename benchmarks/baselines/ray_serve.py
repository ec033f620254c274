"""The echo on Ray Serve: a FastAPI ingress in front of a worker deployment, Ray's default settings."""

from __future__ import annotations

import argparse
import threading
from collections.abc import AsyncIterator

import ray
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from ray import serve
from ray.serve.handle import DeploymentHandle

from benchmarks.baselines.frames import EchoRequest, Result, frames, result

app = FastAPI()


# The default of 5 ongoing requests would queue most of the clients.
@serve.deployment(max_ongoing_requests=100)
class Worker:
    async def stream(self, request: EchoRequest) -> AsyncIterator[str]:
        async for frame in frames(request):
            yield frame

    async def collect(self, request: EchoRequest) -> Result:
        return await result(request)


@serve.deployment(max_ongoing_requests=100)
@serve.ingress(app)
class Ingress:
    def __init__(self, worker: DeploymentHandle) -> None:
        self._worker = worker

    @app.post("/v1/inference", response_model=None)
    async def inference(self, request: EchoRequest) -> StreamingResponse | Result:
        if not request.stream:
            return await self._worker.collect.remote(request)  # type: ignore[no-any-return]
        messages = self._worker.options(stream=True).stream.remote(request)
        return StreamingResponse(messages, media_type="text/event-stream")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    ray.init(address="local", include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Ingress.bind(Worker.bind()))  # type: ignore[attr-defined]
    threading.Event().wait()


if __name__ == "__main__":
    main()
