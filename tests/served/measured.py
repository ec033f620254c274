"""The fault table: what was seen after a fault, how long it took, and how long it may take.

A machine that is busy with other work may miss a bound, which the table then says; a test fails where it is missed by
so much that something must be broken.
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
    seen: str
    seconds: float
    at_most: float


ROWS: list[Row] = []
BROKEN = 3.0
"""Times the bound."""


def measured(fault: str, seen: str, seconds: float, at_most: float) -> None:
    """Write a row, and hold it against the bound of the fault table."""
    ROWS.append(Row(fault, seen, seconds, at_most))
    assert seconds <= BROKEN * at_most, f"{fault}: {seen} after {seconds:.2f} s; {at_most} s is the most"


@contextmanager
def timed(fault: str, seen: str, at_most: float) -> Iterator[None]:
    """The same for the time that a block takes."""
    began = time.monotonic()
    yield
    measured(fault, seen, time.monotonic() - began, at_most)


def table() -> list[str]:
    """All rows, as lines."""
    return [
        f"{row.fault:<34} {row.seen:<54} {row.seconds:8.3f} s  ≤ {row.at_most:g}"
        + ("  MISSED" if row.seconds > row.at_most else "")
        for row in ROWS
    ]
