"""Replicas on GPUs."""

from __future__ import annotations

import pytest

from rbee_serve.config import WorkerConfig
from rbee_serve.memory_plan.placement import placed_replicas


def workers(*gpus: float, replicas: int = 1) -> list[WorkerConfig]:
    names = iter("abcdef")
    return [WorkerConfig(id=next(names), type="echo", gpus=share, replicas=replicas) for share in gpus]


@pytest.mark.parametrize(
    ("requests", "count", "expected"),
    [
        ((0.4, 0.6, 1), 2, [(1,), (1,), (0,)]),
        ((0.5, 2), 3, [(2,), (0, 1)]),
        ((0.6, 0.6, 0.4), 2, [(0,), (1,), (0,)]),
        ((0.6, 0.6), 1, [(0,), ()]),
        ((2,), 1, [()]),
        ((0, 0.5), 1, [(0,)]),  # a worker without GPUs is left out
        ((0.1,) * 6, 1, [(0,)] * 6),
        ((0.5,), 0, [()]),
    ],
)
def test_whole_gpus_come_first_and_shares_fill_the_fullest(
    requests: tuple[float, ...], count: int, expected: list[tuple[int, ...]]
) -> None:
    assert [replica.gpus for replica in placed_replicas(workers(*requests), count)] == expected


def test_each_replica_is_placed_by_itself() -> None:
    placed = placed_replicas(workers(0.5, replicas=3), 2)
    assert [replica.label for replica in placed] == ["a #1", "a #2", "a #3"]
    assert sorted(replica.gpus for replica in placed) == [(0,), (0,), (1,)]
