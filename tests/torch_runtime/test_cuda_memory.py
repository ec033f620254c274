"""What torch can still allocate beside CUDA graphs, computed from readings; no GPU and no torch are needed."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.torch_runtime.cuda_memory import CudaMemory, cuda_memory

GB = 10**9


def segment(pool: tuple[int, int], total: float, allocated: float) -> dict[str, Any]:
    return {"segment_pool_id": pool, "total_size": int(total * GB), "allocated_size": int(allocated * GB)}


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of 24 GB of which this process may reserve half and has reserved 8, and others have 6."""
    segments = [segment((0, 0), 6.2, 5.5), segment((0, 3), 1.5, 0.5), segment((0, 3), 0.3, 0.3), segment((0, 4), 1, 0)]
    cuda = SimpleNamespace(
        mem_get_info=lambda: (10 * GB, 24 * GB),
        memory_reserved=lambda: 8 * GB,
        memory_allocated=lambda: 6_500_000_000,
        get_per_process_memory_fraction=lambda: 0.5,
        memory_snapshot=lambda include_traces: segments,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))


@pytest.mark.usefixtures("readings")
def test_what_graphs_hold_is_available_only_if_they_are_dropped() -> None:
    memory = cuda_memory((0, 3))
    assert memory == CudaMemory(12 * GB, 10 * GB, 8 * GB, 6_500_000_000, GB)
    assert (memory.available, memory.available_without_graphs) == (4_500_000_000, 5_500_000_000)


@pytest.mark.usefixtures("readings")
def test_without_graphs_nothing_is_held() -> None:
    assert cuda_memory().held == 0


@pytest.mark.parametrize(
    ("limit", "free", "available"),
    [(12, 10, 4.5), (24, 1, 1.5), (8, 10, 0.5), (24, 0, 0.5)],
)
def test_both_the_limit_and_the_free_memory_count(limit: int, free: int, available: float) -> None:
    memory = CudaMemory(limit * GB, free * GB, 8 * GB, 6_500_000_000, GB)
    assert memory.available == available * GB
