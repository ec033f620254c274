"""The limit on a batch after an out-of-memory."""

from __future__ import annotations

from rbee_serve.worker.batch_limit import LOWERED_S, BatchLimit


def test_a_limit_is_lowered_for_a_while_and_never_raised() -> None:
    now = [100.0]
    limit = BatchLimit(64, lambda: now[0])
    assert limit.cost == 64
    limit.lower(64, 32)
    limit.lower(32, 16)
    limit.lower(60, 30)
    assert limit.cost == 16
    now[0] += LOWERED_S - 1
    assert limit.cost == 16
    now[0] += 1
    assert limit.cost == 64


def test_a_limit_is_at_least_one() -> None:
    limit = BatchLimit(2)
    limit.lower(2, 0)
    assert limit.cost == 1
