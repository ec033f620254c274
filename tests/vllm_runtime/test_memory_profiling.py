"""Why one model at a time is loaded onto a GPU: vLLM's own arithmetic, with readings of a GPU that does not exist."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from tests.gpus.fake_nvml import GIB

pytestmark = pytest.mark.vllm

TOTAL, SHARE = 24 * GIB, 0.4
OWN = 4 * GIB
"""What the engine takes before its cache: weights and context."""
PEAK = 1 * GIB
"""What a forward pass takes beyond that, and gives back."""


def cache_bytes(monkeypatch: pytest.MonkeyPatch, readings: Sequence[int]) -> int:
    """The size of the KV cache that vLLM chooses where these bytes of the GPU are free: when the engine starts, before
    its test run, and after it."""
    import torch
    from vllm.utils.mem_utils import MemorySnapshot
    from vllm.v1.worker.gpu_worker import Worker

    script = iter(readings)
    stats = {"allocated_bytes.all.current": OWN, "allocated_bytes.all.peak": OWN + PEAK}
    replaced: dict[str, Any] = {
        "get_memory_info": lambda device=None: (next(script), TOTAL),
        "memory_stats": lambda device=None: stats,
        "memory_reserved": lambda device=None: OWN,
        "reset_peak_memory_stats": lambda device=None: None,
        "empty_cache": lambda: None,
    }
    for name, function in replaced.items():
        monkeypatch.setattr(torch.accelerator, name, function)
    compilation: Any = SimpleNamespace(cudagraph_mode=None)
    worker: Any = SimpleNamespace(
        cache_config=SimpleNamespace(kv_cache_memory_bytes=None, gpu_memory_utilization=SHARE),
        init_snapshot=MemorySnapshot(device="cuda:0"),
        requested_memory=int(SHARE * TOTAL),
        model_runner=SimpleNamespace(model_memory_usage=OWN, profile_run=lambda **options: None),
        randomize_dummy_inputs=False,
        vllm_config=SimpleNamespace(compilation_config=compilation),
        model_config=SimpleNamespace(multimodal_config=None),
        parallel_config=SimpleNamespace(),
        _scoped_allocator_max_split=lambda **options: nullcontext(),
    )
    return int(Worker.determine_available_memory(worker))


def test_an_engine_that_starts_alone_gets_the_rest_of_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    free = TOTAL - 8 * GIB  # of a worker that has loaded before
    assert cache_bytes(monkeypatch, [free, free - OWN, free - OWN]) == int(SHARE * TOTAL) - OWN - PEAK


@pytest.mark.parametrize("others", [3 * GIB, 5 * GIB])
def test_what_another_process_takes_meanwhile_is_missing_from_the_cache(
    monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    cache = cache_bytes(monkeypatch, [TOTAL, TOTAL - OWN, TOTAL - OWN - others])
    assert cache == int(SHARE * TOTAL) - OWN - PEAK - others
    assert (cache > 0) == (others == 3 * GIB)


def test_what_another_process_frees_meanwhile_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    free = TOTAL - 8 * GIB
    with pytest.raises(AssertionError, match="release GPU memory"):
        cache_bytes(monkeypatch, [free, free - OWN, free - OWN + 8 * GIB])
