"""What bad input must not disturb."""

from __future__ import annotations

import time

import httpx
import psutil

from tests.conftest import APPLICATION
from tests.ingress.bad_http import MIB
from tests.ingress.bad_json import INFER, WORKER
from tests.served.frontends import PROXIES, Frontend
from tests.served.measured import measured
from tests.served.waiting import eventually

NEIGHBOUR = "the-prompt-of-another-client"
RESPONSE_S = 1.0
"""The bound for a response to another client. A slower one stands in the fault table; a far slower one is a failure."""
MAX_GROWTH_BYTES = 32 * MIB


class HealthProbe:
    """The processes behind a frontend. Their worker has one slot and one place in the queue, so a request that leaves
    anything behind blocks the next one."""

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend
        eventually(lambda: self._good_request().status_code == 200, 60)
        replicas = [f"ray::ServeReplica:{APPLICATION}:{name}" for name in ("ingress", WORKER)]
        self._processes = [frontend.process(name) for name in [*PROXIES[frontend.mode], *replicas]]
        self._memory = self._rss()

    def check(self) -> None:
        """After every request: another client is served, the worker is idle, no process has ended or grown."""
        started_at = time.monotonic()
        good = self._good_request()
        assert (good.status_code, good.json()["text"]) == (200, NEIGHBOUR)
        if (elapsed_s := time.monotonic() - started_at) > RESPONSE_S:
            measured("bad input", "a response to another client after it", elapsed_s, RESPONSE_S)
        eventually(lambda: self._frontend.state(WORKER) == "idle", 2)
        self._processes = [self._current(process) for process in self._processes]
        before, self._memory = self._memory, self._rss()
        growth = [now - then for now, then in zip(self._memory, before, strict=True)]
        assert max(growth) < MAX_GROWTH_BYTES, growth

    def _current(self, process: psutil.Process) -> psutil.Process:
        """The process itself, or the HAProxy that Ray has replaced it with, as it does after each change."""
        if process.is_running():
            return process
        assert self._frontend.mode == "haproxy", f"{process} has ended"
        successor = self._frontend.process(PROXIES["haproxy"][0])
        assert {"-sf", str(process.pid)} <= set(successor.cmdline()), f"{process} has ended and was not replaced by Ray"
        return successor

    def _good_request(self) -> httpx.Response:
        return self._frontend.client.post(INFER, json={"prompt": NEIGHBOUR, "stream": False})

    def _rss(self) -> list[int]:
        return [process.memory_info().rss for process in self._processes]
