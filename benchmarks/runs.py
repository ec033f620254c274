"""Every goal and the runs that measure it: program, options and file of its rows."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.method import Comparison, Row
from benchmarks.servers import ROOT

RAW = ROOT / "benchmarks" / "raw"
QUICK_RAW = RAW / "quick"
"""Ignored by git: a quick look is not a result."""

BASELINES = {
    "infinity": "a virtual environment with infinity-emb[server,torch]==0.0.78, for P3",
    "litserve": "a virtual environment with litserve==0.2.19, for P8",
    "ray-llm": "a folder made by pip install --no-deps --target FOLDER pyarrow jsonref, for P2",
}
"""Programs that need an environment of their own, and the value of their option."""


@dataclass(frozen=True, slots=True)
class Run:
    """One call of a program of `benchmarks/`: its options for a full and for a quick run, None if a quick one takes too
    long; the name of its raw file; its options of `BASELINES`; and its function that returns the comparisons."""

    goal: str
    about: str
    module: str
    raw: str
    full: str
    quick: str | None = None
    baselines: Sequence[str] = ()
    compare: str = "comparisons"

    def command(self, quick: bool, baselines: dict[str, str]) -> list[str]:
        """The command line. `baselines` are options of `BASELINES` with their values."""
        options = (self.quick if quick else self.full) or ""
        command = [sys.executable, "-m", f"benchmarks.{self.module}", *options.split()]
        for baseline in self.baselines:
            command += [f"--{baseline}", baselines[baseline]] if baseline in baselines else []
        return [*command, "--save", str(self.rows_at(quick))]

    def rows_at(self, quick: bool) -> Path:
        """The file of its rows."""
        return (QUICK_RAW if quick else RAW) / f"{self.raw}.csv"

    def comparisons(self, rows: Sequence[Row]) -> Iterable[Comparison]:
        """The comparisons that `rows` allow."""
        compare: Callable[[Sequence[Row]], Iterable[Comparison]] = getattr(
            importlib.import_module(f"benchmarks.{self.module}"), self.compare
        )
        return compare(rows)


RUNS = (
    Run("P1", "what we add to vLLM", "llm", "llm", "--clients 1 16 64"),
    Run(
        "P1",
        "the first token, one request in a turn",
        "llm",
        "llm-first-token",
        "--clients 1 --rounds 1 --tokens 3 --beside --blocks 12",
        compare="first_token_comparisons",
    ),
    Run(
        "P2",
        "the path to the engine, with a model of negligible cost",
        "llm",
        "llm-one-layer",
        "--one-layer --clients 1 32 --rounds 8",
        baselines=["ray-llm"],
        compare="one_layer_comparisons",
    ),
    Run("P3", "embeddings", "embedding", "embedding", "", "--blocks 1 --seconds 5", ["infinity"]),
    Run("P4", "a recording of ten seconds", "transcription", "transcription-10s", "--lengths 10 --control"),
    Run("P4", "a recording of five minutes", "transcription", "transcription-300s", "--lengths 300"),
    Run(
        "P5",
        "small images with an event for each step, one in a turn",
        "images",
        "images",
        "--times 1 --steps 30 --blocks 10",
        "--blocks 2 --times 1 --steps 50",
    ),
    Run("P5", "the same in turns of 300 steps", "images", "images-100", "--times 3"),
    Run("P5", "images whose steps take longer", "images", "images-96", "--variant 96 --steps 20"),
    Run("P6", "classification of images", "classification", "classification", ""),
    Run("P7", "speech", "speech", "speech", "", "--blocks 2 --requests 2"),
    Run(
        "P8",
        "requests and streams without a model",
        "echo",
        "echo",
        "",
        "--blocks 2 --seconds 2 --words 100",
        ["litserve"],
    ),
    Run(
        "P8",
        "the same for growing numbers of clients",
        "echo",
        "echo-clients",
        "--clients 1 4 16 64 --words 100 --blocks 3 --seconds 2 --idle 0",
        baselines=["litserve"],
    ),
    Run(
        "P9",
        "open streams with few events",
        "open_streams",
        "open-streams",
        "",
        "--blocks 1 --streams 1 500 --seconds 3",
    ),
    Run("P10", "from the command until all workers are ready", "start", "start", "--blocks 3"),
    Run("P11", "memory", "memory", "memory", ""),
)
GOALS = tuple(dict.fromkeys(run.goal for run in RUNS))
