from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.method import Comparison, Reading, Row, comparison_table, estimate, paired, run_blocks, save, side_table


def rows_of(values: dict[str, list[tuple[float, float]]]) -> list[Row]:
    """Two readings for each block and side."""
    return [
        Row(block, order, side, "events/s", value, 1.0)
        for side, blocks in values.items()
        for block, pair in enumerate(blocks)
        for order, value in enumerate(pair)
    ]


def test_sides_take_turns_in_mirrored_blocks() -> None:
    turns: list[str] = []

    def turn(side: str) -> dict[str, Reading]:
        turns.append(side)
        return {"events/s": Reading(1.0)}

    rows = run_blocks({side: lambda side=side: turn(side) for side in "ABC"}, blocks=2)  # type: ignore[misc]
    assert "".join(turns) == "ABCCBA" * 2
    assert [row.side for row in rows] == turns
    assert [row.order for row in rows] == [*range(6), *range(6)]


def test_a_steady_drift_of_the_machine_cancels_out() -> None:
    speed = iter(range(100, 0, -1))
    factor = {"ours": 2.0, "theirs": 1.0}

    def turn(side: str) -> dict[str, Reading]:
        return {"events/s": Reading(factor[side] * next(speed))}

    rows = run_blocks({"ours": lambda: turn("ours"), "theirs": lambda: turn("theirs")}, blocks=6)
    assert paired(rows, Comparison("events/s", "ours", "theirs")) == pytest.approx([2.0] * 6)


def test_each_block_gives_one_ratio_or_difference() -> None:
    rows = rows_of({"ours": [(4.0, 8.0), (10.0, 10.0)], "theirs": [(2.0, 4.0), (4.0, 6.0)]})
    assert paired(rows, Comparison("events/s", "ours", "theirs")) == [2.0, 2.0]
    assert paired(rows, Comparison("events/s", "ours", "theirs", kind="difference")) == [3.0, 5.0]


def test_the_interval_holds_the_median_and_narrows_with_more_blocks() -> None:
    generator = random.Random(1)
    few, many = ([generator.gauss(1.0, 0.1) for _ in range(count)] for count in (6, 60))
    for values in (few, many):
        found = estimate(values, draws=500)
        assert found.low <= found.median <= found.high
    wide, narrow = estimate(few, draws=500), estimate(many, draws=500)
    assert narrow.high - narrow.low < wide.high - wide.low
    assert estimate(few, draws=500) == wide


def test_equal_blocks_leave_no_doubt() -> None:
    found = estimate([1.5] * 6, draws=100)
    assert (found.low, found.median, found.high) == (1.5, 1.5, 1.5)


def test_tables_say_whether_a_goal_is_reached() -> None:
    rows = rows_of({"ours": [(4.0, 4.0)], "theirs": [(2.0, 2.0)]})
    said = comparison_table(
        rows,
        [
            Comparison("events/s", "ours", "theirs", 1.5),
            Comparison("events/s", "ours", "theirs", 3.0),
            Comparison("events/s", "ours", "theirs", 6.0, "difference"),
            Comparison("events/s", "ours", "theirs"),
        ],
    )
    verdicts = [line.split("|")[5].strip() for line in said.splitlines()[2:]]
    assert verdicts == ["≥ 1.5 reached", "≥ 3 missed", "≤ +6 reached", "none"]
    assert [cell.strip() for cell in side_table(rows).splitlines()[3].split("|")[1:4]] == ["events/s", "theirs", "2.0"]


def test_rows_are_saved_as_csv(tmp_path: Path) -> None:
    save([Row(0, 1, "ours", "events/s", 1234.5678, float("nan"))], tmp_path / "raw" / "echo.csv")
    assert (tmp_path / "raw" / "echo.csv").read_text() == (
        "block,order,side,measure,value,cpu_us\n0,1,ours,events/s,1234.57,nan\n"
    )
