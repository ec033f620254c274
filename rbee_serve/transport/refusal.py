"""The response to a request that is refused before its work begins: one `error` frame, which the ingress turns into an
HTTP status."""

from __future__ import annotations

import msgspec

from rbee_serve.errors import WorkerError
from rbee_serve.errors_json import error_from_json
from rbee_serve.sse import frame
from rbee_serve.transport.request_messages import ResponseChunk

_PREFIX = b'data: {"type":"error"'


def refusal(error: WorkerError) -> ResponseChunk:
    """The only chunk of a request that was refused."""
    return frame(msgspec.json.encode({"type": "error", **error.to_json()})), True


def refused(data: bytes, end_of_stream: bool) -> WorkerError | None:
    """The error of a first chunk that is a refusal; None for any other."""
    if not end_of_stream or not data.startswith(_PREFIX):
        return None
    return error_from_json(msgspec.json.decode(data.removeprefix(b"data: ").partition(b"\n")[0]))
