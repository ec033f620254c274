"""What bad input may not disturb."""

from __future__ import annotations

import re
import time

import httpx
import psutil

from tests.conftest import APPLICATION
from tests.served.bad_http import MIB
from tests.served.bad_json import INFER, WORKER
from tests.served.frontends import PROXIES, Frontend
from tests.served.measured import measured
from tests.served.waiting import eventually

INTERNAL = re.compile(
    rb"0x[0-9a-f]{4}|Traceback|File \"|/home|/root|/tmp|/usr|\.py\b|site-packages|\bray\b|pydantic", re.I
)
"""Nothing like it stands in an answer."""
NEIGHBOUR = "what-somebody-else-has-asked"
ANSWER_S = 1.0
"""So soon the neighbour is answered; what takes longer stands in the fault table, and far longer is a failure."""


class HealthProbe:
    """The processes behind a door. Their worker has one place and one in the queue, so that a request which leaves
    anything behind is in the way of the next one."""

    def __init__(self, door: Frontend) -> None:
        self._door = door
        eventually(lambda: self._good_request().status_code == 200, 60)
        replicas = [f"ray::ServeReplica:{APPLICATION}:{name}" for name in ("ingress", WORKER)]
        self._processes = [door.process(name) for name in [*PROXIES[door.mode], *replicas]]
        self._memory = self._used()

    def check(self) -> None:
        """What holds after every request."""
        began = time.monotonic()
        good = self._good_request()
        assert (good.status_code, good.json()["text"]) == (200, NEIGHBOUR)
        if (took_s := time.monotonic() - began) > ANSWER_S:
            measured("bad input", "a neighbour's answer after it", took_s, ANSWER_S)
        eventually(lambda: self._door.state(WORKER) == "idle", 2)
        self._processes = [self._still_there(process) for process in self._processes]
        used = self._used()
        assert all(now - before < 32 * MIB for now, before in zip(used, self._memory, strict=True)), (
            self._memory,
            used,
        )
        self._memory = used

    def _still_there(self, process: psutil.Process) -> psutil.Process:
        """The process itself, or the HAProxy that Ray has put into its place, as it does whenever it sees a change."""
        if process.is_running():
            return process
        assert self._door.mode == "haproxy", f"{process} has ended"
        successor = self._door.process(PROXIES["haproxy"][0])
        assert {"-sf", str(process.pid)} <= set(successor.cmdline()), f"{process} has ended, and not in peace"
        return successor

    def _good_request(self) -> httpx.Response:
        return self._door.client.post(INFER, json={"prompt": NEIGHBOUR, "stream": False})

    def _used(self) -> list[int]:
        return [process.memory_info().rss for process in self._processes]
