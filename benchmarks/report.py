"""All goals in one table, from the saved rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.method import COMPARED, CONTROL, Comparison, Row, compared, read, table
from benchmarks.runs import Run


def report(runs: Iterable[Run], quick: bool = False) -> str:
    """The table, and a line for each missing run."""
    lines: list[list[str]] = []
    missing = []
    for run in runs:
        path = run.rows_at(quick)
        if path.exists():
            rows = read(path)
            lines += [[run.goal, *line] for line in report_lines(rows, list(run.comparisons(rows)))]
        elif not quick or run.quick is not None:
            missing.append(f"{run.goal}, {run.about}: not measured")
    return "\n".join([table(["goal", *COMPARED, "control"], lines), *([""] if missing else []), *missing])


def report_lines(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> list[list[str]]:
    """A line for each comparison. The control has no line; its interval is the last column of comparisons of the same
    measure and kind (difference or ratio)."""
    controls = {}
    lines = []
    for comparison in comparisons:
        line = compared(rows, comparison)
        if line and comparison.variant == f"{comparison.against}{CONTROL}":
            controls[comparison.measure, comparison.kind == "difference"] = line[COMPARED.index("95 % interval")]
        elif line:
            lines.append((line, (comparison.measure, comparison.kind == "difference")))
    return [[*line, controls.get(key, "")] for line, key in lines]
