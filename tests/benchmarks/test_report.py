from __future__ import annotations

import importlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import runs
from benchmarks.__main__ import main
from benchmarks.method import COMPARED, Comparison, Row, read, save
from benchmarks.report import report, report_lines
from benchmarks.runs import RUNS, Run
from benchmarks.servers import ROOT

ECHO = next(run for run in RUNS if run.module == "echo")


def rows_of(measure: str, **values: float) -> list[Row]:
    """One reading of each variant in each of two blocks."""
    variants = {variant.replace("_", " "): value for variant, value in values.items()}
    return [Row(block, 0, variant, measure, value, 1.0) for block in range(2) for variant, value in variants.items()]


def test_the_control_is_in_the_row_that_it_qualifies() -> None:
    rows = rows_of("events/s", ours=4.0, ours_again=5.0, theirs=2.0)
    requested = [Comparison("events/s", "ours again", "ours"), Comparison("events/s", "ours", "theirs", 1.5, 3.0)]
    (line,) = report_lines(rows, requested)
    assert line == ["events/s", "ours / theirs", "2.25", "2.25 … 2.25", "2", "≥ 1.5 / 3", "must", "1.25 … 1.25"]


def test_a_control_in_milliseconds_is_not_in_the_row_of_a_ratio() -> None:
    rows = rows_of("first byte, ms", ours=4.0, ours_again=5.0, theirs=2.0)
    requested = [
        Comparison("first byte, ms", "ours again", "ours", kind="difference"),
        Comparison("first byte, ms", "ours", "theirs", kind="difference"),
        Comparison("first byte, ms", "ours", "theirs", kind="ratio at most"),
    ]
    assert [line[-1] for line in report_lines(rows, requested)] == ["+1.0 … +1.0", ""]


def test_the_report_has_saved_runs_and_lists_missing_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "RAW", tmp_path)
    speech = next(run for run in RUNS if run.module == "speech")
    save(rows_of("requests/s, 32 clients", **{"rbee-serve": 40.0, "plain Ray Serve": 10.0}), ECHO.rows_at(quick=False))
    head, _, line, empty, missing = report([ECHO, speech]).splitlines()
    assert [cell.strip() for cell in head.split("|")[1:-1]] == ["goal", *COMPARED, "control"]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[:3] == ["P8", "requests/s, 32 clients", "rbee-serve / plain Ray Serve"]
    assert cells[3:] == ["4.00", "4.00 … 4.00", "2", "≥ 3 / 4.5", "must", ""]
    assert (empty, missing) == ("", "P7, speech: not measured")


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.raw)
def test_every_run_has_a_program_with_comparisons(run: Run) -> None:
    assert callable(getattr(importlib.import_module(f"benchmarks.{run.module}"), run.compare))
    path = run.rows_at(quick=False)
    if path.exists():
        rows = read(path)
        assert report_lines(rows, list(run.comparisons(rows)))


def test_no_two_runs_share_a_file() -> None:
    assert len({run.raw for run in RUNS}) == len(RUNS)


def test_a_baseline_is_passed_only_to_runs_with_its_option() -> None:
    command = ECHO.command(quick=True, baselines={"litserve": "/somewhere", "infinity": "/elsewhere"})
    assert command[1:3] == ["-m", "benchmarks.echo"]
    assert command[command.index("--litserve") + 1] == "/somewhere"
    assert "--infinity" not in command
    assert command[command.index("--save") + 1] == str(ECHO.rows_at(quick=True))


def test_a_failed_benchmark_is_reported_and_the_others_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(self: Run, quick: bool, baselines: dict[str, str]) -> list[str]:
        touched = str(tmp_path / self.goal)
        return [sys.executable, "-c", f"open({touched!r}, 'w'); exit({self.goal == 'P3'})"]

    monkeypatch.setattr(runs, "RAW", tmp_path)
    monkeypatch.setattr(Run, "command", command)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "P3", "P7"])
    assert main() == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["P3", "P7"]
    printed = capsys.readouterr().out
    assert "P3, embeddings: FAILED" in printed
    assert "P7, speech: FAILED" not in printed


def test_unknown_goals_are_refused() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks", "P12"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "P12" in done.stderr
