"""The verdict about a worker, and the number that would fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee_serve.config import WorkerConfig
from rbee_serve.gpu_budget import CONTEXT_BYTES
from rbee_serve.memory_plan.gpu_size import GIB, GpuSize
from rbee_serve.memory_plan.needs import Figure, MemoryNeeds
from rbee_serve.memory_plan.plan import MemoryPlan, PlannedWorker, Verdict, plan_memory

GPU = GpuSize("a card", 20 * GIB)


def needs(weights: float, kv: float = 0, activations: float = 0, *, tokens: int = 0) -> MemoryNeeds:
    """Needs in GiB; activations are assumed, as they are for vLLM."""
    return MemoryNeeds(
        weights=Figure(int(weights * GIB), "files"),
        kv_cache=Figure(int(kv * GIB), "config.json"),
        kv_tokens=tokens,
        kv_bytes_per_token=kv * GIB / tokens if tokens else 0,
        activations=Figure(int(activations * GIB), "an estimate", assumed=True),
    )


def planned(gpus: float, worker_needs: MemoryNeeds, *, count: int = 1) -> PlannedWorker:
    gpu = plan([WorkerConfig(id="a", type="echo", gpus=gpus)], worker_needs, count=count).gpus[0]
    return gpu.workers[0]


def plan(workers: list[WorkerConfig], worker_needs: MemoryNeeds, *, count: int = 1) -> MemoryPlan:
    return plan_memory(workers, [GPU] * count, lambda worker, gpu_bytes: worker_needs)


@pytest.mark.parametrize(
    ("worker_needs", "verdict"),
    [
        (needs(4, 4, 1.5), Verdict.FITS),
        (needs(4, 4, 1.6), Verdict.EDGE),
        (needs(4, 5.6), Verdict.TOO_LARGE),
        (needs(4, 4, 7), Verdict.TOO_LARGE),
        (MemoryNeeds(weights=None, activations=None), Verdict.UNKNOWN),
        (MemoryNeeds(weights=Figure(10 * GIB, "files"), activations=None), Verdict.TOO_LARGE),
    ],
    ids=["exactly", "with estimates", "certainly", "by far", "nothing known", "too large in what is known"],
)
def test_a_worker_fits_its_share_less_the_context(worker_needs: MemoryNeeds, verdict: Verdict) -> None:
    assert CONTEXT_BYTES == GIB / 2
    assert planned(0.5, worker_needs).verdict is verdict


def test_a_share_that_the_context_alone_takes_fits_nothing() -> None:
    assert planned(0.02, needs(0)).verdict is Verdict.TOO_LARGE


@given(st.floats(0.1, 15), st.floats(0, 5), st.floats(0, 3))
def test_the_advised_share_is_the_smallest_that_fits(weights: float, kv: float, activations: float) -> None:
    found = planned(0.01, needs(weights, kv, activations)).fitting_share
    if found is None:
        assert planned(0.95, needs(weights, kv, activations)).verdict is not Verdict.FITS
        return
    assert planned(found, needs(weights, kv, activations)).verdict is Verdict.FITS
    smaller = round(found - 0.01, 2)
    assert smaller <= 0 or planned(smaller, needs(weights, kv, activations)).verdict is not Verdict.FITS


@given(st.integers(1024, 262_144), st.floats(0.5, 30))
def test_the_advised_length_fits_and_a_longer_one_does_not(tokens: int, kv: float) -> None:
    worker = planned(0.5, needs(5, kv, 1, tokens=tokens))
    if (length := worker.fitting_length) is None:
        return
    assert length < tokens
    assert planned(0.5, needs(5, kv * length / tokens, 1, tokens=length)).verdict is Verdict.FITS
    longer = length + 257
    assert longer > tokens or planned(0.5, needs(5, kv * longer / tokens, 1)).verdict is not Verdict.FITS


def test_whole_gpus_are_planned_with_a_twentieth_free_and_each_gpu_has_its_part() -> None:
    memory = plan([WorkerConfig(id="a", type="echo", gpus=2)], needs(18), count=2)
    assert [gpu.workers[0].verdict for gpu in memory.gpus] == [Verdict.FITS] * 2
    assert [gpu.workers[0].share for gpu in memory.gpus] == [0.95, 0.95]
    assert planned(2, needs(18.6), count=2).verdict is Verdict.TOO_LARGE
    assert planned(2, needs(18.6), count=2).advice == "use GPUs with 21 GiB, or a smaller model"


def test_the_engines_own_limit_counts_where_it_is_less_than_the_share() -> None:
    from dataclasses import replace

    assert planned(0.5, replace(needs(5), memory_fraction=0.2)).verdict is Verdict.TOO_LARGE
    assert planned(0.5, replace(needs(5), memory_fraction=0.9)).verdict is Verdict.FITS


def test_a_worker_without_a_gpu_is_refused_by_name() -> None:
    workers = [WorkerConfig(id=name, type="echo", gpus=0.6) for name in ("a", "b")]
    memory = plan(workers, needs(1))
    assert memory.without_gpu == ("b",)
    assert memory.unplaced() == ["worker b has no GPU: the 1 GPU is given to the others; lower `gpus` or `replicas`"]


def test_a_refusal_has_the_share_and_the_length_that_would_fit() -> None:
    workers = [WorkerConfig(id="a", type="echo", gpus=0.3)]
    (sentence,) = plan(workers, needs(4, 2, tokens=8192)).refusals()
    assert sentence == (
        "worker a needs 6.5 GiB of GPU 0, and its share is 6.0 GiB: set gpus: 0.33, or max_model_len: 6144"
    )


def test_shares_that_leave_nothing_free_are_warned_of() -> None:
    workers = [WorkerConfig(id=name, type="echo", gpus=0.5) for name in ("a", "b")]
    memory = plan(workers, needs(1))
    assert memory.refusals() == []
    assert memory.warnings() == ["the shares of GPU 0 sum to 1; leave 0.05 for the desktop and for fragments"]
    assert plan(workers[:1], needs(1)).warnings() == []


def test_workers_that_need_more_than_the_gpu_has_are_refused_whatever_their_shares() -> None:
    workers = [WorkerConfig(id=name, type="echo", gpus=0.45) for name in ("a", "b")]
    sentence = (
        "the workers of GPU 0 need {} GiB together, and it has 20.0 GiB: move some to the CPU or another GPU, or "
        "choose smaller models"
    )
    assert sentence.format("21.0") in plan(workers, needs(10)).refusals()
    assert sentence.format("21.0") in plan(workers, needs(8, 0, 2)).warnings()
    assert sentence.format("17.0") not in plan(workers, needs(8)).warnings()
