"""A small real HTTP server that responds as a running application does, from a script."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rbee_serve.config import ApplicationConfig
from rbee_serve.supervisor.checks import CheckedConfig


def loading(worker_id: str, **progress: Any) -> dict[str, Any]:
    """A worker of `GET /v1/ready` that is being loaded."""
    return {"id": worker_id, "ready": False, "state": "loading", "reason": "still loading", "progress": progress}


def up(worker_id: str) -> dict[str, Any]:
    """A worker that is ready."""
    return {"id": worker_id, "ready": True, "state": "idle"}


def broken(worker_id: str, reason: str) -> dict[str, Any]:
    """A worker that could not be loaded."""
    return {"id": worker_id, "ready": False, "state": "error", "reason": reason}


def info(worker_id: str) -> dict[str, Any]:
    """A worker of `GET /v1/workers`."""
    url = f"http://127.0.0.1:8000/workers/{worker_id}"
    return {
        "id": worker_id,
        "model_id": "echo",
        "device": "CPU-0",
        "devices": ["CPU-0"],
        "port": 8000,
        "status": "ready",
        "implementation": "rbee-serve/echo",
        "version": "0.1.0",
        "url": url,
        "type": "echo",
        "task": None,
        "outputs": ["token"],
        "capacity": 64,
        "replicas": [],
        "limits": {},
    }


class Application:
    """Responds to `GET /v1/ready` with one step of the script after the other, and repeats the last one. A step that is
    None is Serve's own 404, as before the application has started."""

    def __init__(self, script: Sequence[list[dict[str, Any]] | None]) -> None:
        self.script = list(script)
        self.tokens: list[str | None] = []
        self.checked: CheckedConfig

    def respond(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        if path == "/v1/workers":
            return 200, json.dumps({"workers": [info(worker["id"]) for worker in self.script[-1] or ()]}).encode()
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if step is None:
            return 404, b"Path '/v1/ready' not found."
        ready = all(worker["ready"] for worker in step)
        return 200 if ready else 503, json.dumps({"ready": ready, "workers": step}).encode()


@contextmanager
def running(script: Sequence[list[dict[str, Any]] | None], token_file: Path | None = None) -> Iterator[Application]:
    """The server, running; its `checked` configuration has its URL."""
    application = Application(script)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            application.tokens.append(self.headers.get("Authorization"))
            status, body = application.respond(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    port = server.server_address[1]
    application.checked = checked_for(f"http://127.0.0.1:{port}", port, token_file)
    try:
        yield application
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def checked_for(url: str, port: int, token_file: Path | None = None) -> CheckedConfig:
    """The configuration of two echo workers that are served at `url`."""
    arguments: dict[str, Any] = {"workers": [{"id": "echo-0", "type": "echo"}, {"id": "echo-1", "type": "echo"}]}
    if token_file:
        arguments["auth"] = {"token_file": token_file}
    return CheckedConfig(
        path=Path("serve_config.yaml"),
        document={},
        app_name="rbee",
        base_url=url,
        host="127.0.0.1",
        port=port,
        config=ApplicationConfig.model_validate(arguments),
        worker_types={"echo": "deployments.echo:SPEC"},
        needs_proxies=False,
        token=token_file.read_bytes().strip() if token_file else None,
    )
