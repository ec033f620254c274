"""A server's processes as one thing: started, counted, put to sleep, woken and ended together."""

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
"""How long a server may take to end in peace."""


class ProcessTree:
    """A command that was started, and every process that came of it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, env=dict(environment), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._root = psutil.Process(self._process.pid)
        self.log = log

    @property
    def running(self) -> bool:
        """Whether the first process is there."""
        return self._process.poll() is None

    def processes(self) -> list[psutil.Process]:
        """All that run now, parents first."""
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cpu_s(self) -> Counter[str]:
        """CPU seconds, user and system, that the running processes have used so far, by the process's name."""
        used: Counter[str] = Counter()
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                used[process_name(process)] += times.user + times.system  # type: ignore[assignment]
        return used

    def memory_bytes(self) -> Counter[str]:
        """The proportional set size of the running processes, by name: of what several map each has its part."""
        held: Counter[str] = Counter()
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                held[process_name(process)] += process.memory_full_info().pss
        return held

    def sleep(self) -> None:
        """Stop all processes where they stand; they use no CPU until they are woken."""
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def end(self) -> None:
        """Ask the first process to end, and end what is left by force."""
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
    """What it is, as far as its command line tells: Ray's workers write there what they run."""
    words = process.cmdline()
    if not words:
        return process.name()
    if words[0].startswith("ray::"):
        return words[0].partition(".")[0].partition(" ")[0]  # without the method that it happens to run
    for before, word in pairwise(words):
        if before == "-m":
            return word
        if word.endswith(".py"):
            return Path(word).stem
    return process.name()


class Stopwatch:
    """CPU seconds that a tree has used since this was made, and wall seconds."""

    def __init__(self, tree: ProcessTree) -> None:
        self._tree = tree
        self._cpu = tree.cpu_s()
        self._busy = _busy_s()
        self._began = time.monotonic()

    def cpu_by_name(self) -> Counter[str]:
        """By the process's name; those that used none are left out."""
        return self._tree.cpu_s() - self._cpu

    def cpu_s(self) -> float:
        """All together."""
        return float(sum(self.cpu_by_name().values()))

    def others_percent(self) -> float:
        """What all other programs used meanwhile, in percent of a core."""
        return 100 * (_busy_s() - self._busy - self.cpu_s()) / self.wall_s()

    def wall_s(self) -> float:
        """Seconds on the clock."""
        return time.monotonic() - self._began


def _busy_s() -> float:
    """CPU seconds that the machine has worked so far."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def one_process() -> ProcessPoolExecutor:
    """A process of its own for a library or for clients, so that they share no interpreter with the one that asks."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
