from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.method import (
    Comparison,
    Kind,
    Reading,
    Row,
    comparison_table,
    estimate,
    paired,
    read,
    run_blocks,
    save,
    variant_table,
    verdict,
)


def rows_of(values: dict[str, list[tuple[float, float]]]) -> list[Row]:
    """Two readings for each block and variant."""
    return [
        Row(block, order, variant, "events/s", value, 1.0)
        for variant, blocks in values.items()
        for block, pair in enumerate(blocks)
        for order, value in enumerate(pair)
    ]


def test_variants_take_turns_in_mirrored_blocks_that_begin_with_each_in_turn() -> None:
    turns: list[str] = []

    def turn(variant: str) -> dict[str, Reading]:
        turns.append(variant)
        return {"events/s": Reading(1.0)}

    rows = run_blocks({variant: lambda variant=variant: turn(variant) for variant in "ABC"}, blocks=2)  # type: ignore[misc]
    assert "".join(turns) == "ABCCBABCAACB"
    assert [row.variant for row in rows] == turns
    assert [row.order for row in rows] == [*range(6), *range(6)]


def test_a_steady_drift_of_the_machine_cancels_out() -> None:
    speed = iter(range(100, 0, -1))
    factor = {"ours": 2.0, "theirs": 1.0}

    def turn(variant: str) -> dict[str, Reading]:
        return {"events/s": Reading(factor[variant] * next(speed))}

    rows = run_blocks({"ours": lambda: turn("ours"), "theirs": lambda: turn("theirs")}, blocks=6)
    assert paired(rows, Comparison("events/s", "ours", "theirs")) == pytest.approx([2.0] * 6)


def test_each_block_gives_one_ratio_or_difference() -> None:
    rows = rows_of({"ours": [(4.0, 8.0), (10.0, 10.0)], "theirs": [(2.0, 4.0), (4.0, 6.0)]})
    assert paired(rows, Comparison("events/s", "ours", "theirs")) == [2.0, 2.0]
    assert paired(rows, Comparison("events/s", "ours", "theirs", kind="difference")) == [3.0, 5.0]


def test_a_control_is_compared_with_its_variant_and_counts_for_it_against_others() -> None:
    rows = rows_of({"ours": [(4.0, 8.0)], "ours again": [(2.0, 2.0)], "theirs": [(2.0, 2.0)]})
    assert paired(rows, Comparison("events/s", "ours again", "ours")) == [2.0 / 6.0]
    assert paired(rows, Comparison("events/s", "ours", "theirs")) == [4.0 / 2.0]


def test_the_interval_contains_the_median_and_narrows_with_more_blocks() -> None:
    generator = random.Random(1)
    few, many = ([generator.gauss(1.0, 0.1) for _ in range(count)] for count in (6, 60))
    for values in (few, many):
        found = estimate(values, draws=500)
        assert found.low <= found.median <= found.high
    wide, narrow = estimate(few, draws=500), estimate(many, draws=500)
    assert narrow.high - narrow.low < wide.high - wide.low
    assert estimate(few, draws=500) == wide


def test_equal_blocks_give_an_interval_of_width_zero() -> None:
    found = estimate([1.5] * 6, draws=100)
    assert (found.low, found.median, found.high) == (1.5, 1.5, 1.5)


def test_a_verdict_is_the_higher_of_the_goals_that_are_reached() -> None:
    def goal(median: float, must: float | None, stretch: float | None, kind: Kind = "ratio") -> str:
        return verdict(Comparison("events/s", "ours", "theirs", must, stretch, kind), median)

    assert [goal(median, 0.8, 1.0) for median in (1.0, 0.8, 0.79)] == ["stretch", "must", "missed"]
    assert [goal(median, 6.0, 3.0, "difference") for median in (3.0, 6.0, 6.1)] == ["stretch", "must", "missed"]
    assert [goal(median, 0.25, 0.15, "ratio at most") for median in (0.1, 0.2, 0.3)] == [
        "stretch",
        "must",
        "missed",
    ]
    assert [goal(median, 100, 40, "value at most") for median in (40, 41, 101)] == ["stretch", "must", "missed"]
    assert [goal(median, 0.8, None) for median in (5.0, 0.7)] == ["must", "missed"]
    assert [goal(median, None, 0.8) for median in (0.8, 0.7)] == ["stretch", "stretch missed"]
    assert goal(1.0, None, None) == ""


def test_tables_have_the_compared_variants_the_blocks_and_the_verdict() -> None:
    rows = rows_of({"ours": [(4.0, 4.0), (8.0, 8.0)], "theirs": [(2.0, 2.0), (4.0, 4.0)]})
    printed = comparison_table(
        rows,
        [
            Comparison("events/s", "ours", "theirs", 1.5, 3.0),
            Comparison("events/s", "ours", "theirs", stretch=6.0, kind="difference"),
            Comparison("events/s", "ours", "", 5.0, kind="value at most"),
            Comparison("events/s", "ours", "theirs"),
        ],
    )
    cells = [[cell.strip() for cell in line.split("|")[2:-1]] for line in printed.splitlines()[2:]]
    assert cells == [
        ["ours / theirs", "2.00", "2.00 … 2.00", "2", "≥ 1.5 / 3", "must"],
        ["ours - theirs", "+3.0", "+2.0 … +4.0", "2", "≤ - / +6", "stretch"],
        ["ours", "6.0", "4.0 … 8.0", "2", "≤ 5 / -", "missed"],
        ["ours / theirs", "2.00", "2.00 … 2.00", "2", "", ""],
    ]
    assert [cell.strip() for cell in variant_table(rows).splitlines()[3].split("|")[1:4]] == [
        "events/s",
        "theirs",
        "3.0",
    ]


def test_a_measure_without_both_variants_is_left_out() -> None:
    rows = rows_of({"ours": [(4.0, 4.0)]})
    assert comparison_table(rows, [Comparison("events/s", "ours", "theirs")]) == comparison_table(rows, [])
    assert len(comparison_table(rows, []).splitlines()) == 2


def test_rows_are_saved_as_csv(tmp_path: Path) -> None:
    save([Row(0, 1, "ours", "events/s", 1234.5678, float("nan"))], tmp_path / "raw" / "echo.csv")
    assert (tmp_path / "raw" / "echo.csv").read_text() == (
        "block,order,variant,measure,value,cpu_us\n0,1,ours,events/s,1234.57,nan\n"
    )


def test_saved_rows_can_be_loaded(tmp_path: Path) -> None:
    rows = [Row(0, 1, "ours", "first byte, ms, 100 words", 1.25, 3.5), Row(1, 0, "theirs", "events/s", 10.0, 0.0)]
    save(rows, tmp_path / "rows.csv")
    assert read(tmp_path / "rows.csv") == rows
