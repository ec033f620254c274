"""The tables of a soak and its verdict."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.method import table
from benchmarks.soak.faults import Fault
from benchmarks.soak.load import MAX_REFUSED, Record, totals
from benchmarks.soak.memory import MAX_GROWTH_MB, Growth, Windows
from benchmarks.soak.server import STOP_S, Leftovers


@dataclass(frozen=True, slots=True)
class Result:
    """Everything that a soak has found."""

    record: Record
    injected: Sequence[Fault]
    problems: Sequence[str]
    """Faults outside of responses: recoveries, counters, the orchestrator, the stop."""
    modes: Mapping[str, int]
    messages: int
    growths: Sequence[Growth]
    windows: Windows
    leftovers: Leftovers
    stop: tuple[int, float]
    temp_files: Sequence[int]

    @property
    def failures(self) -> list[str]:
        """The reasons why the verdict is not `passed`."""
        found = list(self.problems)
        if self.record.fault_count:
            found.append(f"{self.record.fault_count} responses that should not have been")
        if self.record.refused > MAX_REFUSED * max(1, self.record.good):
            found.append(f"{self.record.refused} of {self.record.good} good requests were refused: too much load")
        found += [
            f"{growth.role} (process {growth.pid}) has grown by {growth.mb:.1f} MB"
            for growth in self.growths
            if growth.mb > MAX_GROWTH_MB and growth.pid not in self.killed
        ]
        if self.leftovers.files:
            found.append(f"{len(self.leftovers.files)} left in the temporary folder: {_some(self.leftovers.files)}")
        if self.leftovers.shared:
            found.append(f"{len(self.leftovers.shared)} left in /dev/shm: {_some(self.leftovers.shared)}")
        code, seconds = self.stop
        if code != 0 or seconds > STOP_S:
            found.append(f"the stop took {seconds:.0f} s and returned {code}")
        return found

    @property
    def killed(self) -> set[int]:
        """Processes that were killed or stopped."""
        return {pid for fault in self.injected for pid in fault.pids}

    def __str__(self) -> str:
        record = self.record
        early, late = (f"minutes {a:.1f} to {b:.1f}" for a, b in (self.windows.early, self.windows.late))
        verdict = "\n".join(f"- {failure}" for failure in self.failures)
        return "\n\n".join(
            [
                table(["worker", "outcome", "requests"], totals(record)),
                table(["client", "requests"], _counted(record.conducts)),
                table(["request", "requests"], _counted(record.kinds)),
                table(["injected", "times", "s to recover, median", "longest"], _recoveries(self.injected)),
                table(["orchestrator", "times"], _counted(self.modes)),
                f"Memory (RSS, MB), {early} against {late}; {MAX_GROWTH_MB:.0f} MB more at most",
                table(
                    ["process", "before", "after", "more", "PSS more", "descriptors", "threads"], _rows(self.growths)
                ),
                (
                    f"requests {record.requests}, unanswered {record.unanswered}, outside the grammar "
                    f"{record.outside_grammar}, messages to the orchestrator {self.messages}, temporary files "
                    f"{min(self.temp_files, default=0)} to {max(self.temp_files, default=0)} while running and "
                    f"{len(self.leftovers.files)} after the stop, which took {self.stop[1]:.1f} s"
                ),
                *([f"Responses that should not have been:\n{chr(10).join(record.faults)}"] if record.faults else []),
                f"FAILED\n{verdict}" if verdict else "passed",
            ]
        )


def _counted(counts: Mapping[str, int]) -> list[list[str]]:
    return [[name, str(count)] for name, count in sorted(counts.items())]


def _recoveries(faults: Sequence[Fault]) -> list[list[str]]:
    rows = []
    for kind in sorted({fault.kind for fault in faults}):
        seconds = [fault.seconds for fault in faults if fault.kind == kind and fault.seconds is not None]
        spans = [f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}"] if seconds else ["", ""]
        rows.append([kind, str(len(seconds)), *spans])
    return rows


def _rows(growths: Sequence[Growth]) -> list[list[str]]:
    return [
        [
            growth.role,
            f"{growth.early.rss_mb:.1f}",
            f"{growth.late.rss_mb:.1f}",
            f"{growth.mb:+.1f}",
            f"{growth.late.pss_mb - growth.early.pss_mb:+.1f}",
            f"{growth.early.descriptors} → {growth.late.descriptors}",
            f"{growth.early.threads} → {growth.late.threads}",
        ]
        for growth in growths
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
