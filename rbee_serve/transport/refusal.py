"""What a request gets that is not even started: one `error` frame, which the ingress answers with an HTTP status."""

from __future__ import annotations

import msgspec

from rbee_serve.errors import WorkerError
from rbee_serve.sse import frame
from rbee_serve.transport.request_messages import ResponseChunk


def refusal(error: WorkerError) -> ResponseChunk:
    """The one fragment that a request gets which is not even started: the ingress answers it with an HTTP status."""
    return frame(msgspec.json.encode({"type": "error", **error.to_json()})), True
