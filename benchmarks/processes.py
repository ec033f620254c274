"""A server's process tree: started, measured, stopped, continued and ended together."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path

import psutil

STOP_S = 40.0
"""Seconds for a graceful end of a server."""


class ProcessTree:
    """A started command and all of its descendants."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path | None = None
    ) -> None:
        """`folder` is the working folder; by default the one of this process."""
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env=dict(environment),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=folder,
            )
        self._root = psutil.Process(self._process.pid)
        self.log = log

    @property
    def running(self) -> bool:
        """Whether the first process is running."""
        return self._process.poll() is None

    def processes(self) -> list[psutil.Process]:
        """All running processes, parents first."""
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cpu_s(self) -> Counter[str]:
        """CPU seconds, user and system, of the running processes so far, by process name."""
        used: Counter[str] = Counter()
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                used[process_name(process)] += times.user + times.system  # type: ignore[assignment]
        return used

    def memory_bytes(self) -> Counter[str]:
        """The proportional set size of the running processes, by name: shared pages are divided among them."""
        held: Counter[str] = Counter()
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                held[process_name(process)] += process.memory_full_info().pss
        return held

    def sleep(self) -> None:
        """Send SIGSTOP to all processes; they use no CPU until `wake`."""
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Send SIGCONT to all processes."""
        self._signal(signal.SIGCONT)

    def end(self) -> None:
        """Send SIGTERM to the first process, then SIGKILL to those that are left."""
        every = self.processes()
        self.wake()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.terminate()
            self._process.wait(STOP_S)
        for process in every:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._process.wait()

    def _signal(self, number: int) -> None:
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)


def process_name(process: psutil.Process) -> str:
    """A name from the command line, into which Ray's workers write what they run."""
    words = process.cmdline()
    if not words:
        return process.name()
    if words[0].startswith("ray::"):
        return words[0].partition(".")[0].partition(" ")[0]  # without the method that is running
    for before, word in pairwise(words):
        if before == "-m":
            return word
        if word.endswith(".py"):
            return Path(word).stem
    return process.name()


class Stopwatch:
    """CPU and wall seconds of a tree since creation."""

    def __init__(self, tree: ProcessTree) -> None:
        self._tree = tree
        self._cpu = tree.cpu_s()
        self._busy = _busy_s()
        self._began = time.monotonic()

    def cpu_by_name(self) -> Counter[str]:
        """CPU seconds by process name, without processes that used none."""
        return self._tree.cpu_s() - self._cpu

    def cpu_s(self) -> float:
        """All together."""
        return float(sum(self.cpu_by_name().values()))

    def others_percent(self) -> float:
        """CPU of all other programs meanwhile, in percent of a core."""
        return 100 * (_busy_s() - self._busy - self.cpu_s()) / self.wall_s()

    def wall_s(self) -> float:
        """Wall seconds."""
        return time.monotonic() - self._began


def _busy_s() -> float:
    """CPU seconds of the whole machine so far."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def one_process() -> ProcessPoolExecutor:
    """A process of its own for a library or for clients, with a GIL of its own."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
