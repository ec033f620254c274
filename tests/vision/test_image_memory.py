"""Whether an image fits into memory, with numbers in place of a GPU."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.torch_runtime.cuda_memory import CudaMemory
from deployments.vision.image_memory import ImageMemory
from rbee_serve.errors import InsufficientResources, InsufficientVram
from rbee_serve.worker.spec import Device

GB = 10**9
BYTES_PER_PIXEL = 4000.0
"""So that an image of 1024 x 1024 pixels takes 4.2 GB, as that of SDXL."""


def memory(monkeypatch: pytest.MonkeyPatch, *, pool: Any = (0, 1), held: int = 0, **readings: int) -> ImageMemory:
    """On a GPU where this process may use 10 GB and has allocated 7.5 of them."""
    found = CudaMemory(**{"limit": 10 * GB, "free": 20 * GB, "reserved": 8 * GB, "allocated": 15 * GB // 2, **readings})
    with_graphs = CudaMemory(found.limit, found.free, found.reserved, found.allocated, held)
    monkeypatch.setattr(
        "deployments.vision.image_memory.cuda_memory", lambda given: found if given is None else with_graphs
    )
    return ImageMemory(Device("cuda"), BYTES_PER_PIXEL, pool)


def test_an_image_that_the_share_can_never_hold_is_beyond_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory(monkeypatch).max_pixels((256, 256)) == 625_000
    assert memory(monkeypatch, free=0).max_pixels((256, 256)) == 625_000


def test_a_share_that_cannot_hold_the_smallest_image_is_refused_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InsufficientVram, match=r"takes about 4\.2 GB .* leaves 2\.5 GB of its share .* raise `gpus`"):
        memory(monkeypatch).max_pixels((1024, 1024))


def test_an_image_that_is_too_large_at_the_moment_is_refused_as_retriable(monkeypatch: pytest.MonkeyPatch) -> None:
    memory(monkeypatch).require((512, 512))
    with pytest.raises(InsufficientVram, match=r"about 1\.0 GB to generate, and 0\.6 GB are free") as caught:
        memory(monkeypatch, free=GB // 10).require((512, 512))
    assert caught.value.retriable


def test_the_memory_of_graphs_is_counted_as_free_for_a_request_but_not_beside_the_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_graphs = memory(monkeypatch, held=2 * GB)
    with_graphs.require((512, 512))
    assert with_graphs.fits_beside_graphs((256, 256))
    assert not with_graphs.fits_beside_graphs((512, 512))
    assert memory(monkeypatch, held=GB).fits_beside_graphs((512, 512))


def test_without_graphs_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory(monkeypatch, pool=None).fits_beside_graphs((4096, 4096))


def test_on_a_cpu_memory_bounds_a_request_and_not_the_model() -> None:
    on_cpu = ImageMemory(Device("cpu"), 1e12)
    assert on_cpu.max_pixels((256, 256)) is None
    assert on_cpu.fits_beside_graphs((256, 256))
    with pytest.raises(InsufficientResources, match="64 x 64 pixels takes about"):
        on_cpu.require((64, 64))
