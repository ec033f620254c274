"""Processes that are killed or stopped at random, and how long the server takes to serve again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from benchmarks.processes import process_name
from benchmarks.soak.http import exchange
from benchmarks.soak.samples import quick
from benchmarks.soak.server import Server, Worker
from rbee_serve.sse import DONE

RECOVERY_S = 180.0
"""A replacement must serve by then; an LLM takes a minute to load."""
AFTER_S = 3.0
"""How long after the recovery a request may still fail that began before it."""
PAUSE_S = (5.0, 15.0)
"""Between a recovery and the next fault."""
GONE_S = 30.0
"""How long a killed replica's processes may take to end."""
INGRESS, HUB = "ingress", "hub"
CORE_PART = 0.15
"""The part of the faults that hits one of those."""


@dataclass(slots=True)
class Fault:
    """One injected fault. `worker` may be the ingress or the hub."""

    kind: str
    worker: str
    began: float
    recovered: float | None = None
    pids: set[int] = field(default_factory=set)

    @property
    def seconds(self) -> float | None:
        """Until the worker served again."""
        return None if self.recovered is None else self.recovered - self.began

    def overlaps(self, began: float, ended: float) -> bool:
        """Whether a request in that time may have met it."""
        return began <= (self.recovered or float("inf")) + AFTER_S and ended >= self.began


class Faults:
    """The faults so far."""

    def __init__(self, server: Server, rng: random.Random) -> None:
        self.all: list[Fault] = []
        self.problems: list[str] = []
        """Recoveries that failed, and processes that were left."""
        self._server = server
        self._rng = rng

    def disturbs(self, worker: Worker, began: float, ended: float) -> bool:
        """Whether a process that a request of that time needed was hit."""
        needed = {worker.id, *worker.uses, INGRESS, HUB}
        return any(fault.worker in needed and fault.overlaps(began, ended) for fault in self.all)

    def cuts(self, began: float, ended: float) -> bool:
        """Whether the ingress was hit in that time, whose connections break with it."""
        return any(fault.worker == INGRESS and fault.overlaps(began, ended) for fault in self.all)

    async def inject(self, targets: Iterable[Worker], with_core: bool) -> None:
        """One random fault, of a worker of `targets`, or of the hub or the ingress, until it is mended."""
        workers = list(targets)
        worker_kind = self._rng.choice(sorted({worker.kind for worker in workers}))
        worker = self._rng.choice([worker for worker in workers if worker.kind == worker_kind])
        kind, name = self._rng.choice(self._kinds(worker)), worker.id
        if with_core and self._rng.random() < CORE_PART:
            kind, name = "kill", self._rng.choice([INGRESS, HUB])
        victims = self._victims(kind, name)
        if not victims:
            return
        victim = self._rng.choice(victims)
        family = [victim, *_children(victim)]
        fault = Fault(f"{kind} {name if name in (INGRESS, HUB) else worker.kind}", name, time.monotonic())
        fault.pids = {process.pid for process in family}
        self.all.append(fault)
        with suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGSTOP if kind.startswith("stop") else signal.SIGKILL)
        await self._until_it_serves(fault, worker)
        await self._until_gone(fault, family)

    def _kinds(self, worker: Worker) -> list[str]:
        engine = ["kill engine", "stop engine"] if self._victims("kill engine", worker.id) else []
        return ["kill", "kill", "stop", *engine]

    def _victims(self, kind: str, name: str) -> list[psutil.Process]:
        replicas = [
            process
            for process in _children(psutil.Process(self._server.pid))
            if _name(process).startswith("ray::ServeReplica:") and _name(process).split(":")[-1] == name
        ]
        if not kind.endswith("engine"):
            return replicas
        engines = ("VLLM::EngineCore", "rbee_serve.replica.backend_server")
        return [child for replica in replicas for child in _children(replica) if _name(child) in engines]

    async def _until_it_serves(self, fault: Fault, worker: Worker) -> None:
        """A stopped process keeps its answers: the fault is over when a request succeeds and the process is gone."""
        while (waited := time.monotonic() - fault.began) < RECOVERY_S:
            await asyncio.sleep(0.5)
            sample = quick(self._server.port, worker.id, worker.kind)
            response = await exchange(self._server.port, sample.request, sample.deadline_s)
            ended = response.complete and bytes(response.body).endswith(DONE) and b'"type":"end"' in response.body
            if ended and response.status == 200 and not self._stopped(fault):
                fault.recovered = time.monotonic()
                return
        fault.recovered = time.monotonic()
        self.problems.append(f"{fault.kind}: {worker.id} did not serve again within {waited:.0f} s")

    def _stopped(self, fault: Fault) -> bool:
        """Whether a stopped process is still there, such as one of two replicas, while the other one serves."""
        for pid in fault.pids:
            with suppress(psutil.Error):
                if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
                    return True
        return False

    async def _until_gone(self, fault: Fault, family: Collection[psutil.Process]) -> None:
        deadline = time.monotonic() + GONE_S
        while left := [process for process in family if process.is_running() and _name(process)]:
            if time.monotonic() > deadline:
                names = ", ".join(sorted({f"{_name(process)} ({process.status()})" for process in left}))
                self.problems.append(f"{fault.kind}: left running: {names}")
                return
            await asyncio.sleep(0.5)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _name(process: psutil.Process) -> str:
    try:
        return process_name(process) if process.status() != psutil.STATUS_ZOMBIE else ""
    except psutil.Error:
        return ""
