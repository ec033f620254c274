"""The comparison of servers on a small, shared and noisy machine.

The variants take turns in mirrored blocks, A B B A, so that drift affects all alike, and each block begins with another
variant: the last variant of a pass takes two turns in a row, the second of them warm. Each block gives one ratio; the
report has the median of the ratios and its bootstrap interval over blocks. A variant that is listed twice is the
control: its ratio to itself shows how small a difference can be claimed."""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Literal

CONTROL = " again"
"""The suffix of a variant that is listed twice."""

DRAWS = 10_000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Reading:
    """The value of one measure in one turn. `cpu_us` is the server's CPU time per unit of work, in microseconds,
    over all of its processes."""

    value: float
    cpu_us: float = float("nan")


@dataclass(frozen=True, slots=True)
class Row:
    """A reading and its position: each block has two passes, the second in reverse order."""

    block: int
    order: int
    variant: str
    measure: str
    value: float
    cpu_us: float


Kind = Literal["ratio", "ratio at most", "difference", "value at most"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """`variant` against `against`: their ratio, or for times their difference; or, without a counterpart (`value at
    most`, an empty `against`), the value itself. `must` and `stretch` are the least ratio, or the largest one (`ratio
    at most`), difference or value; None where there is no goal."""

    measure: str
    variant: str
    against: str
    must: float | None = None
    stretch: float | None = None
    kind: Kind = "ratio"


@dataclass(frozen=True, slots=True)
class Estimate:
    """The median over blocks and its interval."""

    low: float
    median: float
    high: float


Goal = tuple[float | None, float | None]
"""The goals `must` and `stretch`."""
NO_GOAL: Goal = (None, None)

Turn = Callable[[], Mapping[str, Reading]]
"""Measures one variant once; returns readings by measure."""


def block_options(description: str | None) -> argparse.ArgumentParser:
    """A parser of the common options: number of blocks, file of the rows."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--save", type=Path, help="a CSV file for the raw rows")
    return parser


def run_blocks(variants: Mapping[str, Turn], blocks: int) -> list[Row]:
    """Let the variants take turns: in each block one pass in one order and one in reverse. The order is the given one,
    rotated by one variant per block. Each row is printed on stderr."""
    rows = []
    for block in range(blocks):
        names = list(variants)
        first = block % len(names)
        names = names[first:] + names[:first]
        for order, variant in enumerate(names + names[::-1]):
            for measure, reading in variants[variant]().items():
                row = Row(block, order, variant, measure, reading.value, reading.cpu_us)
                print(
                    f"{block} {variant:22} {measure:28} {row.value:10.1f} {row.cpu_us:10.1f}",
                    file=sys.stderr,
                    flush=True,
                )
                rows.append(row)
    return rows


def measures(rows: Iterable[Row]) -> list[str]:
    """The measures, in the order of the rows."""
    return list(dict.fromkeys(row.measure for row in rows))


def paired(rows: Iterable[Row], comparison: Comparison) -> list[float]:
    """One ratio or difference per block, of the means of the two variants. Readings of a control count for its variant,
    unless the control itself is compared. Blocks without one of the two are left out."""
    values: dict[tuple[int, str], list[float]] = {}
    for row in rows:
        if row.measure == comparison.measure:
            variant = row.variant
            if not comparison.variant.endswith(CONTROL):
                variant = variant.removesuffix(CONTROL)
            values.setdefault((row.block, variant), []).append(row.value)
    results = []
    for block in sorted({block for block, variant in values if variant == comparison.variant}):
        ours = statistics.fmean(values[block, comparison.variant])
        if comparison.kind == "value at most":
            results.append(ours)
        elif theirs := values.get((block, comparison.against)):
            mean = statistics.fmean(theirs)
            results.append(ours - mean if comparison.kind == "difference" else ours / mean)
    return results


def estimate(values: Sequence[float], draws: int = DRAWS, level: float = LEVEL) -> Estimate:
    """The median of `values` and its bootstrap interval. Deterministic: the same values give the same interval."""
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(draws))
    outside = (1 - level) / 2
    return Estimate(
        medians[int(outside * draws)], statistics.median(values), medians[min(draws - 1, int((1 - outside) * draws))]
    )


def variant_table(rows: Sequence[Row]) -> str:
    """For each measure and variant: the median reading, and the median CPU time per unit of work."""
    lines = []
    for measure in dict.fromkeys(row.measure for row in rows):
        for variant in dict.fromkeys(row.variant for row in rows):
            taken = [row for row in rows if (row.measure, row.variant) == (measure, variant)]
            if taken:
                value, cpu_us = (statistics.median(getattr(row, name) for row in taken) for name in ("value", "cpu_us"))
                lines.append([measure, variant, f"{value:,.1f}", "" if cpu_us != cpu_us else f"{cpu_us:,.1f}"])
    return table(["measure", "variant", "median", "server CPU µs per unit"], lines)


COMPARED = ["measure", "compared", "median", "95 % interval", "blocks", "must / stretch", "verdict"]
"""The columns of a comparison."""


def compared(rows: Sequence[Row], comparison: Comparison) -> list[str] | None:
    """The median over blocks, its interval if there are several, and the verdict; None unless both variants were
    measured."""
    values = paired(rows, comparison)
    if not values:
        return None
    found = estimate(values)
    form, sign = _FORMS[comparison.kind]
    return [
        comparison.measure,
        f"{comparison.variant} {sign} {comparison.against}".strip(),
        f"{found.median:{form}}",
        f"{found.low:{form}} … {found.high:{form}}" if len(values) > 1 else "",
        str(len(values)),
        _bounds(comparison),
        verdict(comparison, found.median),
    ]


def comparison_table(rows: Sequence[Row], comparisons: Iterable[Comparison]) -> str:
    """All comparisons of which both variants were measured."""
    return table(COMPARED, filter(None, (compared(rows, comparison) for comparison in comparisons)))


def verdict(comparison: Comparison, median: float) -> str:
    """`stretch` or `must`, whichever is reached, or `missed`; empty where there is no goal."""

    def reached(bound: float | None) -> bool:
        return bound is not None and (median >= bound if comparison.kind == "ratio" else median <= bound)

    if reached(comparison.stretch):
        return "stretch"
    if reached(comparison.must):
        return "must"
    if comparison.must is None:
        return "" if comparison.stretch is None else "stretch missed"
    return "missed"


_FORMS: dict[Kind, tuple[str, str]] = {
    "ratio": (".2f", "/"),
    "ratio at most": (".2f", "/"),
    "difference": ("+.1f", "-"),
    "value at most": (".1f", ""),
}
"""The number format of each kind, and the sign between the two variants."""


def _bounds(comparison: Comparison) -> str:
    if comparison.must is comparison.stretch is None:
        return ""
    form = "+g" if comparison.kind == "difference" else "g"
    bounds = ("-" if bound is None else f"{bound:{form}}" for bound in (comparison.must, comparison.stretch))
    return f"{'≥' if comparison.kind == 'ratio' else '≤'} {' / '.join(bounds)}"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, its columns aligned for a terminal."""
    cells = [list(head), *map(list, lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    )


def save(rows: Iterable[Row], path: Path) -> None:
    """Write the rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(Row))
        writer.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in astuple(row)] for row in rows)


def read(path: Path) -> list[Row]:
    """The saved rows."""
    with path.open(newline="") as file:
        return [
            Row(int(line["block"]), int(line["order"]), line["variant"], line["measure"], float(line["value"]),
                float(line["cpu_us"]))
            for line in csv.DictReader(file)
        ]  # fmt: skip
