"""What `check` refuses about `gpus`, `backend` and the parallel sizes, before anything starts."""

from __future__ import annotations

import pytest

from deployments.app import check
from deployments.vllm_runtime.parallel_sizes import tensor_parallel_size
from rbee_serve.errors import ConfigurationError

MODELS = {
    "llm": "hf:org/name",
    "multimodal": "hf:org/name",
    "embedding": "hf:org/name",
    "reranker": "hf:org/name",
    "audio/transcribe": "hf:org/name",
    "vision/classify": "hf:org/name",
    "vision/embed": "hf:org/name",
    "vision/generate": "hf:org/name",
    "audio/generate": None,
}


def fault(kind: str, **worker: object) -> str | None:
    """The fault of a worker of that type, without its place."""
    name, _, task = kind.partition("/")
    entry = {"id": "a", "type": name, **({"task": task} if task else {}), **worker}
    if MODELS[kind]:
        entry["model_ref"] = MODELS[kind]
    try:
        check({"workers": [entry]}, "127.0.0.1")
    except ConfigurationError as exc:
        return str(exc).removeprefix("workers[0].")
    return None


@pytest.mark.parametrize(
    "kind", ["reranker", "audio/transcribe", "audio/generate", "vision/classify", "vision/embed", "vision/generate"]
)
def test_an_engine_for_one_gpu_refuses_two(kind: str) -> None:
    engine = {"engine": {"name": "transformers"}} if kind == "audio/generate" else {}
    model = {"model_ref": "hf:org/name"} if kind == "audio/generate" else {}
    assert fault(kind, gpus=2, **engine, **model) == (
        f"gpus: a {kind} worker uses 1 GPU at most; lower it, and set replicas for more"
    )
    assert fault(kind, gpus=1, replicas=2, **engine, **model) is None


def test_embeddings_take_two_gpus_with_vllm_only() -> None:
    assert fault("embedding", gpus=2, engine={"name": "vllm"}) is None
    assert str(fault("embedding", gpus=2)).startswith("gpus: sentence-transformers uses one GPU")


@pytest.mark.parametrize("kind", ["llm", "embedding", "vision/classify"])
def test_cuda_without_a_gpu_is_refused(kind: str) -> None:
    assert fault(kind, backend="cuda") == (
        "gpus: backend: cuda needs at least a share of a GPU; set gpus, such as 1 or 0.5"
    )
    assert fault(kind, backend="cuda", gpus=0.5) is None


def test_a_gpu_for_an_engine_on_the_cpu_is_refused() -> None:
    assert str(fault("audio/generate", gpus=0.1)).startswith("gpus: the engine hibari runs on the CPU")


@pytest.mark.parametrize("kind", ["llm", "multimodal", "embedding"])
@pytest.mark.parametrize(
    ("gpus", "sizes", "accepted"),
    [
        (2, {"pipeline_parallel_size": 2}, True),
        (4, {"pipeline-parallel-size": 2}, True),
        (4, {"pipeline_parallel_size": 2, "data_parallel_size": 2}, True),
        (3, {"pipeline_parallel_size": 2}, False),
        (1, {"pipeline_parallel_size": 2}, False),
        (0.5, {"pipeline_parallel_size": 2}, False),
        (2, {"pipeline_parallel_size": 4}, False),
        (2, {"pipeline_parallel_size": 2, "data_parallel_size": 2}, False),
        (0, {"pipeline_parallel_size": 2}, True),
    ],
)
def test_the_parallel_sizes_multiply_to_the_gpus(kind: str, gpus: float, sizes: dict[str, int], accepted: bool) -> None:
    engine = sizes | ({"name": "vllm"} if kind == "embedding" else {})
    found = fault(kind, gpus=gpus, engine=engine)
    assert (found is None) == accepted
    assert found is None or found.startswith(f"gpus: {gpus:g} is no multiple of ")


@pytest.mark.parametrize(
    ("gpus", "engine", "expected"),
    [
        (1, {}, 1),
        (2, {}, 2),
        (4, {"pipeline_parallel_size": 2}, 2),
        (0.5, {}, 1),
        (2, {"pipeline_parallel_size": 2}, 1),
    ],
)
def test_the_layers_are_divided_among_what_the_other_sizes_leave(
    gpus: float, engine: dict[str, int], expected: int
) -> None:
    assert tensor_parallel_size(gpus, engine) == expected
