"""A local HTTP server that answers as the Hugging Face Hub does."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 8192,
    "pytorch_model.bin": b"a pickle",
    "README.md": b"text",
}


class Refusal(NamedTuple):
    """What the Hub answers in place of everything: a status, with `X-Error-Code` and `X-Error-Message`."""

    status: int
    code: str = ""
    message: str = "no"


class Hub(ThreadingHTTPServer):
    """Serves the same files for every repository `org/…`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(FILES)
        self.refusal: Refusal | None = None
        self.paths: list[str] = []
        """The path of every request."""
        self.downloads: list[str] = []
        self.claimed_sizes: dict[str, int] = {}
        self.continued = threading.Event()
        """While it is not set, a download of weights stops in the middle."""
        self.continued.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.paths.append(path)
        sizes = {name: self.server.claimed_sizes.get(name, len(data)) for name, data in self.server.files.items()}
        if refusal := self.server.refusal:
            self._send(b"{}", refusal.status, {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message})
        elif re.match(r"/api/models/org/[^/]+/tree/", path):
            tree = [{"type": "file", "path": name, "size": size, "oid": name} for name, size in sizes.items()]
            self._send(json.dumps(tree).encode())
        elif match := re.match(r"/api/models/(org/[^/]+)", path):
            siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
            self._send(json.dumps({"id": match[1], "sha": COMMIT, "siblings": siblings}).encode())
        else:
            name = path.partition(f"/resolve/{COMMIT}/")[2]
            data = self.server.files[name]
            if self.command == "GET":
                self.server.downloads.append(name)
            self._send(data, headers={"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            half = len(body) // 2
            self.wfile.write(body[:half])
            if half > 1024:
                self.server.continued.wait()
            self.wfile.write(body[half:])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name in the base class)
        """Log nothing."""


@contextmanager
def running_hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.continued.set()
    server.shutdown()
    server.server_close()
    thread.join()


@contextmanager
def silent_hub() -> Iterator[str]:
    """The URL of a server that accepts connections and never answers, as behind a firewall that drops packets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
