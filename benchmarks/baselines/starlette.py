"""The echo on Starlette and uvicorn: one process, no Ray, no hop."""

from __future__ import annotations

import argparse

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from benchmarks.baselines.frames import EchoRequest, frames, result


async def inference(request: Request) -> Response:
    echo_request = EchoRequest.model_validate_json(await request.body())
    if echo_request.stream:
        return StreamingResponse(frames(echo_request), media_type="text/event-stream")
    return Response((await result(echo_request)).model_dump_json(), media_type="application/json")


app = Starlette(routes=[Route("/v1/inference", inference, methods=["POST"])])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
