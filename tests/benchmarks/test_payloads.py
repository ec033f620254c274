from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from benchmarks.load import LoadError, Target
from benchmarks.payloads import Payload, exchange


@contextmanager
def answering(text: Callable[[dict[str, Any]], str]) -> Iterator[Target]:
    """A server that answers a request with a text."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            fields = json.loads(self.rfile.read(int(self.headers["content-length"])))
            body = json.dumps({"text": text(fields)}, separators=(",", ":")).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield Target(server.server_port, "/")
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("size", [1000, 1_000_000])
def test_payloads_are_echoed(size: int) -> None:
    with answering(lambda fields: fields["prompt"]) as target:
        assert len(exchange(Payload(target, size, back=True, seconds=0)).times_s) == 2
    with answering(lambda fields: fields["prompt"].split()[0]) as target:
        assert len(exchange(Payload(target, size, back=False, seconds=0)).times_s) == 2


def test_an_incomplete_response_is_an_error() -> None:
    with (
        answering(lambda fields: fields["prompt"][:500] + fields["prompt"][501:]) as target,
        pytest.raises(LoadError, match="incomplete"),
    ):
        exchange(Payload(target, 1000, back=True, seconds=0))
