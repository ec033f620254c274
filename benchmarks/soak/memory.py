"""The processes of the server over time: memory, file descriptors, threads."""

from __future__ import annotations

import csv
import re
import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import psutil

from benchmarks.processes import process_name

PERIOD_S = 5.0
MAX_GROWTH_MB = 8.0
FULL_MINUTES = 20.0
"""A run of at least this length compares minutes 10 to 15 with the last five; a shorter one parts of itself."""
_FIELD = re.compile(rb"^(Rss|Pss|Anonymous): +(\d+) kB", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Reading:
    """One process at one moment. `rss_mb` decides about growth: the proportional share (`pss_mb`) of a process rises
    when another one that shares its libraries is killed."""

    minute: float
    pid: int
    role: str
    rss_mb: float
    pss_mb: float
    anonymous_mb: float
    descriptors: int
    threads: int


@dataclass(frozen=True, slots=True)
class Windows:
    """The two spans of minutes that are compared."""

    early: tuple[float, float]
    late: tuple[float, float]

    @classmethod
    def of(cls, minutes: float) -> Windows:
        """For a run of `minutes`."""
        if minutes >= FULL_MINUTES:
            return cls((10.0, 15.0), (minutes - 5.0, minutes))
        return cls((minutes / 3, minutes / 2), (minutes * 5 / 6, minutes))


@dataclass(frozen=True, slots=True)
class Growth:
    """A process that ran all the time, with its medians in both windows."""

    role: str
    pid: int
    early: Reading
    late: Reading

    @property
    def mb(self) -> float:
        """More memory in the second window."""
        return self.late.rss_mb - self.early.rss_mb


def read(supervisor: int, began: float) -> list[Reading]:
    """All running processes of the server."""
    try:
        root = psutil.Process(supervisor)
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    readings = []
    for process in processes:
        with suppress(psutil.Error, OSError):
            folder = f"/proc/{process.pid}"
            sizes = {name: int(kb) / 1024 for name, kb in _FIELD.findall(Path(folder, "smaps_rollup").read_bytes())}
            if sizes:  # none of a zombie
                readings.append(
                    Reading(
                        (time.monotonic() - began) / 60,
                        process.pid,
                        role(process),
                        sizes[b"Rss"],
                        sizes[b"Pss"],
                        sizes[b"Anonymous"],
                        sum(1 for _ in Path(folder, "fd").iterdir()),
                        process.num_threads(),
                    )
                )
    return readings


def role(process: psutil.Process) -> str:
    """What it runs: the name of a Ray worker, or that of its nearest one and its own."""
    own = process_name(process).removeprefix("ray::")
    if own.startswith("ServeReplica:"):
        return own.split(":")[-1]
    for parent in process.parents():
        name = process_name(parent)
        if name.startswith("ray::ServeReplica:"):
            return f"{name.split(':')[-1]} {own}"
    return own


def growths(readings: Iterable[Reading], windows: Windows) -> list[Growth]:
    """Of each process that has readings from the first window to the end of the second, the most first."""
    by_pid: dict[int, list[Reading]] = {}
    for reading in readings:
        by_pid.setdefault(reading.pid, []).append(reading)
    found = []
    for pid, series in by_pid.items():
        early, late = (_within(series, window) for window in (windows.early, windows.late))
        if early and late:
            found.append(Growth(late[-1].role, pid, _median(early), _median(late)))
    return sorted(found, key=lambda growth: -growth.mb)


def _within(series: Sequence[Reading], window: tuple[float, float]) -> list[Reading]:
    return [reading for reading in series if window[0] <= reading.minute <= window[1]]


def _median(series: Sequence[Reading]) -> Reading:
    numbers = {
        field.name: statistics.median(getattr(reading, field.name) for reading in series)
        for field in fields(Reading)
        if field.name not in ("role", "pid", "descriptors", "threads")
    }
    counts = {name: round(statistics.median(getattr(r, name) for r in series)) for name in ("descriptors", "threads")}
    return Reading(pid=series[0].pid, role=series[-1].role, **numbers, **counts)


def save(readings: Iterable[Reading], path: Path) -> None:
    """Write all readings as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Reading)], lineterminator="\n")
        writer.writeheader()
        for reading in readings:
            writer.writerow({n: round(v, 2) if isinstance(v, float) else v for n, v in asdict(reading).items()})
