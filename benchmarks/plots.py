"""Throughput and latency over the number of clients, drawn from the rows of `raw/` as SVG.

    python -m benchmarks.plots

The same rows give the same bytes. A line is the median of the readings, its band the range. The control is
not drawn.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks.method import CONTROL, Row, read
from benchmarks.runs import RAW
from benchmarks.servers import ROOT

PLOTS = ROOT / "benchmarks" / "plots"
STYLE = {
    "svg.hashsalt": "rbee-serve",  # otherwise element ids are random
    "svg.fonttype": "none",  # text as text, not as outlines
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.which": "major",
    "grid.color": "#e4e4e4",
}
COLORS = {
    "rbee-serve": "#0072b2",
    "plain Ray Serve": "#d55e00",
    "Ray Serve LLM": "#d55e00",
    "uvicorn": "#555555",
    "vLLM": "#555555",
    "LitServe": "#009e73",
}
"""One color per variant in all plots; most people with color vision deficiency can distinguish them."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot of two measures from a file of `raw/`; `{}` in their names stands for the number of clients."""

    name: str
    title: str
    raw: str
    throughput: str
    latency: str


DRAWN = (
    Plot(
        "echo-requests",
        "Echo, one JSON answer",
        "echo-clients",
        "requests/s, {} clients",
        "one request, ms, {} clients",
    ),
    Plot(
        "echo-streams",
        "Echo, streams of 100 words",
        "echo-clients",
        "events/s, 100 words, {} clients",
        "first byte, ms, 100 words, {} clients",
    ),
    Plot("llm", "SmolLM2-135M, 64 tokens in and out", "llm", "tokens/s, {} clients", "first token, ms, {} clients"),
    Plot(
        "llm-one-layer",
        "A model of one layer, 64 tokens in and out",
        "llm-one-layer",
        "tokens/s, {} clients",
        "first token, ms, {} clients",
    ),
)

Series = Mapping[int, list[float]]
"""Readings by the number of clients."""


def main() -> None:
    """Draw all plots."""
    PLOTS.mkdir(exist_ok=True)
    for plot in DRAWN:
        path = RAW / f"{plot.raw}.csv"
        if path.exists():
            draw(plot, read(path), PLOTS / f"{plot.name}.svg")
        else:
            print(f"{plot.name}: {path.name} is not there", file=sys.stderr)


def series(rows: Iterable[Row], measure: str) -> dict[str, Series]:
    """For each variant the readings of a measure, by the number in place of `{}`."""
    pattern = re.compile(re.escape(measure).replace(r"\{\}", r"(\d+)"))
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        if (match := pattern.fullmatch(row.measure)) and not row.variant.endswith(CONTROL):
            found.setdefault(row.variant, {}).setdefault(int(match[1]), []).append(row.value)
    return {variant: dict(sorted(values.items())) for variant, values in found.items()}


def draw(plot: Plot, rows: list[Row], path: Path) -> None:
    """Write the plot as an SVG file."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        for axes, measure in zip(figure.subplots(1, 2), (plot.throughput, plot.latency), strict=True):
            _lines(axes, series(rows, measure))
            axes.set_title(measure.replace(", {} clients", ""), loc="left", fontsize=9)
        figure.suptitle(plot.title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _lines(axes: Any, variants: Mapping[str, Series]) -> None:
    for variant, values in variants.items():
        clients = list(values)
        color = COLORS[variant]
        axes.plot(
            clients, [statistics.median(taken) for taken in values.values()], "o-", color=color, ms=4, label=variant
        )
        axes.fill_between(
            clients, [*map(min, values.values())], [*map(max, values.values())], color=color, alpha=0.15, lw=0
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("clients")
    axes.set_xticks(sorted({clients for values in variants.values() for clients in values}))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.minorticks_off()


if __name__ == "__main__":
    main()
