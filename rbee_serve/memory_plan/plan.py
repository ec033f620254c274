"""The plan: workers on GPUs, what each needs beside what its share gives, and the number that would fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from rbee_serve.config import WorkerConfig
from rbee_serve.gpu_budget import CONTEXT_BYTES, MAX_SHARE, budget_bytes
from rbee_serve.memory_plan.gpu_size import GIB, GpuSize
from rbee_serve.memory_plan.needs import MemoryNeeds
from rbee_serve.memory_plan.placement import placed_replicas

MAX_ESTIMATE_FACTOR = 4
"""An estimate is not taken to be more times too high: a worker that would not fit even then is refused."""

LENGTH_STEP = 256
"""A length that would fit is rounded down to a multiple of it."""


class Verdict(StrEnum):
    """Whether a worker fits its share."""

    FITS = "fits"
    EDGE = "on the edge"
    """It fits only if the figures that are assumed are too high."""
    TOO_LARGE = "does not fit"
    """The figures that are certain are more than the share, or the estimates far more."""
    UNKNOWN = "unknown"
    """Figures are missing, and the others fit."""


@dataclass(frozen=True, slots=True)
class PlannedWorker:
    """A replica on one of its GPUs."""

    worker: WorkerConfig
    label: str
    needs: MemoryNeeds
    gpu_bytes: int
    context_bytes: int = CONTEXT_BYTES

    @property
    def share(self) -> float:
        """Its part of this GPU."""
        return min(self.worker.gpus, MAX_SHARE)

    @property
    def share_bytes(self) -> int:
        """The bytes of its share, CUDA context included."""
        return int(self.share * self.gpu_bytes)

    @property
    def sum_bytes(self) -> int:
        """What it needs, CUDA context included, as far as it is known."""
        return self.needs.total_bytes + self.context_bytes

    @property
    def budget_bytes(self) -> int:
        """What weights, KV cache and activations may take."""
        budget = budget_bytes(self.gpu_bytes, self.share)
        if self.needs.memory_fraction is None:
            return budget
        return min(budget, int(self.needs.memory_fraction * self.gpu_bytes))

    @property
    def verdict(self) -> Verdict:
        """Whether it fits."""
        certain, total = self.needs.certain_bytes, self.needs.total_bytes
        if certain + (total - certain) / MAX_ESTIMATE_FACTOR > self.budget_bytes or not self.budget_bytes:
            return Verdict.TOO_LARGE
        if self.needs.unknown:
            return Verdict.UNKNOWN
        return Verdict.EDGE if total > self.budget_bytes else Verdict.FITS

    @property
    def fitting_share(self) -> float | None:
        """The smallest `gpus`, in hundredths, with which it fits; None if no share of this GPU is enough, or figures
        are unknown."""
        share = math.ceil(100 * self.sum_bytes / self.gpu_bytes) / 100
        return share if share <= MAX_SHARE and not self.needs.unknown else None

    @property
    def fitting_length(self) -> int | None:
        """The largest length, in tokens, with which it fits its share; None if no length does."""
        needs = self.needs
        if not needs.kv_bytes_per_token or needs.kv_cache is None or needs.unknown:
            return None
        left = self.budget_bytes - (needs.total_bytes - needs.kv_cache.bytes)
        length = int(left / needs.kv_bytes_per_token) // LENGTH_STEP * LENGTH_STEP
        return length if LENGTH_STEP <= length < needs.kv_tokens else None

    @property
    def remedy(self) -> str:
        """What would fit, such as `gpus: 0.33, or max_model_len: 4096`."""
        if self.needs.unknown:
            return ""
        choices = []
        if self.worker.gpus < 1 and self.fitting_share is not None:
            choices.append(f"gpus: {self.fitting_share:g}")
        if self.fitting_length is not None:
            choices.append(f"{self.needs.length_option}: {self.fitting_length}")
        if not choices or self.worker.gpus >= 1:
            choices.append(f"GPUs with {math.ceil(self.sum_bytes / MAX_SHARE / GIB)} GiB, or a smaller model")
        return ", or ".join(choices)

    @property
    def advice(self) -> str:
        """The remedy as the end of a sentence."""
        remedy = self.remedy or "a larger share"
        return f"set {remedy}" if ":" in remedy else f"use {remedy}"


@dataclass(frozen=True, slots=True)
class PlannedGpu:
    """One GPU and the replicas on it."""

    index: int
    size: GpuSize
    workers: tuple[PlannedWorker, ...]

    @property
    def shares(self) -> float:
        """The sum of the shares, as configured."""
        return round(sum(min(1.0, planned.worker.gpus) for planned in self.workers), 4)

    @property
    def sum_bytes(self) -> int:
        """What its workers need together, as far as it is known."""
        return sum(planned.sum_bytes for planned in self.workers)

    @property
    def left_bytes(self) -> int:
        """What the shares of its workers leave."""
        return self.size.usable_bytes - sum(planned.share_bytes for planned in self.workers)

    @property
    def certain_bytes(self) -> int:
        """The part of it that is not assumed, and the contexts."""
        return sum(planned.needs.certain_bytes + planned.context_bytes for planned in self.workers)

    @property
    def too_much(self) -> str:
        """The sentence about workers that need more than the GPU has, whatever their shares."""
        return (
            f"the workers of GPU {self.index} need {gib(self.sum_bytes)} GiB together, and it has "
            f"{gib(self.size.usable_bytes)} GiB: move some to the CPU or another GPU, or choose smaller models"
        )


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """All GPUs, and the labels of the replicas for which none is left."""

    gpus: tuple[PlannedGpu, ...]
    without_gpu: tuple[str, ...]

    def refusals(self) -> list[str]:
        """A sentence for each worker that cannot fit, with the number that would."""
        sentences = [
            f"worker {planned.label} needs {gib(planned.sum_bytes)} GiB of GPU {gpu.index}, and its share is "
            f"{gib(planned.share_bytes)} GiB: {planned.advice}"
            for gpu in self.gpus
            for planned in gpu.workers
            if planned.verdict is Verdict.TOO_LARGE
        ]
        return sentences + [gpu.too_much for gpu in self.gpus if gpu.certain_bytes > gpu.size.usable_bytes]

    def unplaced(self) -> list[str]:
        """A sentence for each worker for which no GPU is left."""
        count = len(self.gpus)
        given = "1 GPU is" if count == 1 else f"{count} GPUs are"
        return [
            f"worker {label} has no GPU: the {given} given to the others; lower `gpus` or `replicas`"
            for label in self.without_gpu
        ]

    def warnings(self) -> list[str]:
        """A sentence for each worker on the edge, and for each GPU that is given away to its last bytes."""
        sentences = [
            f"worker {planned.label} is on the edge: by the estimates it needs {gib(planned.sum_bytes)} GiB of GPU "
            f"{gpu.index}, and its share is {gib(planned.share_bytes)} GiB; {planned.advice}"
            for gpu in self.gpus
            for planned in gpu.workers
            if planned.verdict is Verdict.EDGE
        ]
        sentences += [
            gpu.too_much
            for gpu in self.gpus
            if gpu.certain_bytes <= gpu.size.usable_bytes and gpu.sum_bytes > MAX_SHARE * gpu.size.usable_bytes
        ]
        sentences += [
            f"other processes use {gib(gpu.size.used_bytes)} GiB of GPU {gpu.index}, of which the shares leave "
            f"{gib(gpu.left_bytes)} GiB; stop them, or lower `gpus` of its workers"
            for gpu in self.gpus
            if gpu.workers and gpu.size.used_bytes > gpu.left_bytes
        ]
        return sentences + [
            f"the shares of GPU {gpu.index} sum to {gpu.shares:g}; leave 0.05 for the desktop and for fragments"
            for gpu in self.gpus
            if gpu.shares > MAX_SHARE + 1e-9 and all(planned.worker.gpus < 1 for planned in gpu.workers)
        ]


def gib(count: float) -> str:
    """Bytes as GiB with one digit."""
    return f"{count / GIB:.1f}"


def plan_memory(
    workers: Sequence[WorkerConfig], gpus: Sequence[GpuSize], needs_of: Callable[[WorkerConfig, int], MemoryNeeds]
) -> MemoryPlan:
    """The plan of `workers` on `gpus`. `needs_of` is called with a worker and the bytes of its GPU."""
    placed = placed_replicas(workers, len(gpus))
    return MemoryPlan(
        tuple(
            PlannedGpu(
                index,
                size,
                tuple(
                    PlannedWorker(
                        replica.worker, replica.label, needs_of(replica.worker, size.usable_bytes), size.usable_bytes
                    )
                    for replica in placed
                    if index in replica.gpus
                ),
            )
            for index, size in enumerate(gpus)
        ),
        tuple(replica.label for replica in placed if not replica.gpus),
    )
