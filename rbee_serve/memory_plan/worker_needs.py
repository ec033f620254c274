"""The needs of one worker, as its type states them."""

from __future__ import annotations

from typing import Any

from rbee_serve.config import WorkerConfig
from rbee_serve.memory_plan.model_facts import ModelFacts
from rbee_serve.memory_plan.needs import NOTHING, MemoryNeeds
from rbee_serve.worker.spec import WorkerSpec


def worker_needs(worker: WorkerConfig, spec: WorkerSpec[Any], facts: ModelFacts | None, gpu_bytes: int) -> MemoryNeeds:
    """What `spec.memory` returns. For a type that has none: the weights as they are stored, and unknown activations.

    `facts` are None for a worker without a model. Raises what `spec.memory` raises, such as `ConfigurationError`.
    """
    if facts is None:
        return MemoryNeeds(weights=NOTHING, activations=None)
    if spec.memory is None:
        return MemoryNeeds(weights=facts.weights_figure(), activations=None)
    return spec.memory(worker, facts, gpu_bytes)
