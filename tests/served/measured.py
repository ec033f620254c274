"""The fault table: what was observed after a fault, after how many seconds, and the bound.

A machine that is busy with other work may miss a bound, which the table then shows. A test fails only where the time is
three times the bound, so that something must be broken.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One measurement, in seconds."""

    fault: str
    observation: str
    seconds: float
    bound_s: float


ROWS: list[Row] = []
FAILURE_FACTOR = 3.0
"""A test fails at this many times the bound."""


def measured(fault: str, observation: str, seconds: float, bound_s: float) -> None:
    """Add a row, and compare it with the bound of the fault table."""
    ROWS.append(Row(fault, observation, seconds, bound_s))
    assert seconds <= FAILURE_FACTOR * bound_s, (
        f"{fault}: {observation} after {seconds:.2f} s; the bound is {bound_s} s"
    )


@contextmanager
def timed(fault: str, observation: str, bound_s: float) -> Iterator[None]:
    """The same for the duration of a block."""
    started_at = time.monotonic()
    yield
    measured(fault, observation, time.monotonic() - started_at, bound_s)


def table() -> list[str]:
    """All rows, as lines."""
    return [
        f"{row.fault:<34} {row.observation:<54} {row.seconds:8.3f} s  ≤ {row.bound_s:g}"
        + ("  MISSED" if row.seconds > row.bound_s else "")
        for row in ROWS
    ]
