"""The echo on LitServe: one API for streams and one for single responses, with default settings.

LitServe evaluates the annotations of `decode_request` and `encode_response`, so they are no strings here.
"""

import argparse
from collections.abc import AsyncIterator
from typing import Any

import litserve

from benchmarks.baselines.frames import EchoRequest, Result, frames, result


# Without `enable_async` streams run one after another.
class Streams(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        pass

    async def decode_request(self, request: EchoRequest) -> EchoRequest:
        return request

    async def predict(self, request: EchoRequest) -> AsyncIterator[str]:
        async for frame in frames(request):
            yield frame

    async def encode_response(self, output: AsyncIterator[str]) -> Any:
        async for frame in output:
            yield frame


class Answers(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        pass

    async def decode_request(self, request: EchoRequest) -> EchoRequest:
        return request

    async def predict(self, request: EchoRequest) -> Result:
        return await result(request)

    async def encode_response(self, output: Result) -> Result:
        return output


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    streams = Streams(stream=True, enable_async=True, api_path="/v1/inference")
    answers = Answers(enable_async=True, api_path="/v1/answer")
    server = litserve.LitServer([streams, answers], accelerator="cpu")
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
