"""The HTTP servers that requests can arrive at, and an application behind each."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import psutil
import pytest

from tests.conftest import CORS, ECHO, MAX_BODY_BYTES, free_port
from tests.raw_http import RawResponse, exchange
from tests.served.waiting import eventually
from tests.supervised import supervisor

Mode = Literal["own", "throughput", "default", "haproxy"]
"""The ingress's own listener; Ray's proxy with the settings of our supervisor, and with Ray's defaults; HAProxy."""

PROXIES: dict[Mode, list[str]] = {
    "own": [],
    "throughput": ["ray::ProxyActor"],
    "default": ["ray::ProxyActor"],
    "haproxy": ["haproxy/bin/haproxy", "ray::HAProxyManager"],
}
"""The processes before the ingress, by their names."""

TOKEN = "a-token-for-haproxy"
WORKERS: list[dict[str, Any]] = [
    {"id": "echo-small", **ECHO, "max_ongoing_requests": 1, "max_queued_requests": 1},
    {"id": "echo-eight", **ECHO, "max_ongoing_requests": 8},
]
"""Workers behind every frontend; some have more."""
LIMITS = {"max_body_bytes": MAX_BODY_BYTES, "body_timeout_s": 3}


def settings(mode: Mode) -> tuple[dict[str, str], dict[str, Any]]:
    """The variables and the keys of the file with which a supervisor has this frontend. The other ports of HAProxy are
    free ones, not the defaults, which another Ray may use."""
    if mode == "haproxy":
        return {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        }, {}
    environment = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"} if mode == "default" else {}
    return environment, {} if mode == "own" else {"proxy_location": "HeadOnly"}


def via(*modes: Mode) -> pytest.MarkDecorator:
    """The test is run through each of these frontends."""
    return pytest.mark.parametrize("frontend", modes, indirect=True)


@dataclass(frozen=True)
class Frontend:
    """The URL of an application, the headers that every request needs, and the process that started its Ray."""

    mode: Mode
    url: str
    headers: dict[str, str]
    client: httpx.Client
    owner: psutil.Process

    def state(self, worker_id: str) -> str:
        """The state of a worker."""
        return str(self.client.get(f"/workers/{worker_id}/v1/ready").json()["state"])

    def with_token(self, request: bytes) -> bytes:
        """The raw request, with the token."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        return request.replace(b"\r\n", b"\r\n" + lines.encode(), 1)

    def exchange(self, request: bytes | Iterable[bytes]) -> RawResponse:
        """The response to a raw request, which is sent piece by piece with the token."""
        pieces = iter([request] if isinstance(request, bytes) else request)
        return exchange(self.url, itertools.chain([self.with_token(next(pieces))], pieces))

    def process(self, name: str) -> psutil.Process:
        """The process of that name in its Ray; the youngest, because replaced HAProxy processes stay for a while."""
        raylets = [child for child in self.owner.children() if child.name() == "raylet"]
        found = [process for raylet in raylets for process in raylet.children(recursive=True)]
        return max((p for p in found if name in " ".join(p.cmdline())), key=psutil.Process.create_time)


@contextmanager
def open_frontend(mode: Mode, url: str, owner_pid: int, token: str | None = None) -> Iterator[Frontend]:
    """The frontend, with a client for well-formed requests."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(base_url=url, headers=headers, timeout=10) as client:
        yield Frontend(mode, url, headers, client, psutil.Process(owner_pid))


@contextmanager
def default_frontend(folder: Path) -> Iterator[Frontend]:
    """An application behind Ray's proxy, with Ray's default settings."""
    environment, keys = settings("default")
    with supervisor(folder, WORKERS, environment, keys, limits=LIMITS, cors=CORS) as running:
        running.until("Ctrl+C stops it")
        with open_frontend("default", running.url, running.process.pid) as frontend:
            yield frontend


@contextmanager
def haproxy_frontend(folder: Path) -> Iterator[Frontend]:
    """An application behind HAProxy."""
    environment, keys = settings("haproxy")
    token_file = folder / "token"
    token_file.write_text(TOKEN)
    auth = {"token_file": str(token_file)}
    with supervisor(folder, WORKERS, environment, keys, limits=LIMITS, cors=CORS, auth=auth) as running:
        running.until("Ctrl+C stops it")
        with open_frontend("haproxy", running.url, running.process.pid, TOKEN) as frontend:
            # Ray replaces HAProxy whenever an ingress joins: wait until that is over.
            eventually(lambda: time.time() - frontend.process(PROXIES["haproxy"][0]).create_time() > 3)
            yield frontend
