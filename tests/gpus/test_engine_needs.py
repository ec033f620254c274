"""What each worker type says of its needs, beside what was traced and counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from deployments.registry import WORKER_TYPES
from deployments.torch_runtime.encoder_memory import batch_bytes, encoder_bytes
from deployments.vllm_runtime.forward_pass_memory import forward_pass_bytes, image_encoder_bytes
from rbee_serve.config import WorkerConfig
from rbee_serve.memory_plan.facts_file import facts_in_folder
from rbee_serve.memory_plan.gpu_size import GIB
from rbee_serve.memory_plan.model_facts import ModelFacts
from rbee_serve.memory_plan.needs import Figure, MemoryNeeds
from rbee_serve.memory_plan.worker_needs import worker_needs
from rbee_serve.worker.registry import load_spec
from tests.gpus.shipped import MODELS

FACTS = facts_in_folder(MODELS)


def needs(
    kind: str, model: str | None = None, *, gpus: float = 0.5, facts: ModelFacts | None = None, **engine: Any
) -> MemoryNeeds:
    """The needs of a worker of that type on a GPU of 22 GiB."""
    ref = f"hf:{model}" if model else None
    worker_type, _, task = kind.partition("/")
    worker = WorkerConfig(id="a", type=worker_type, task=task or None, model_ref=ref, gpus=gpus, engine=engine)
    return worker_needs(worker, load_spec(WORKER_TYPES[kind]), facts or (FACTS[ref] if ref else None), 22 * GIB)


def config(model: str) -> Mapping[str, Any]:
    return FACTS[f"hf:{model}"].config()


def gib(figure: Figure | None) -> float:
    assert figure is not None
    return round(figure.bytes / GIB, 2)


def test_a_full_batch_of_an_embedding_model_takes_what_was_traced() -> None:
    found = batch_bytes(config("sentence-transformers/all-MiniLM-L6-v2"), tokens=32_768, longest=256, element_bytes=4)
    assert found is not None
    assert 1 <= found / 562e6 < 1.1


def test_a_full_batch_of_images_takes_what_was_traced() -> None:
    activations = needs("vision/classify", "google/siglip2-base-patch16-256", dtype="float16").activations
    assert activations is not None
    assert activations.bytes == pytest.approx(327e6, rel=0.01)


def test_speech_takes_what_was_traced() -> None:
    activations = needs("audio/generate", "facebook/mms-tts-eng", name="transformers").activations
    assert activations is not None
    assert activations.bytes == pytest.approx(206e6, rel=0.01)


def test_an_encoder_without_dimensions_is_unknown() -> None:
    assert encoder_bytes({"hidden_size": 8}, rows=1, length=1, element_bytes=2) is not None  # four times as wide
    assert encoder_bytes({"intermediate_size": 8}, rows=1, length=1, element_bytes=2) is None


@pytest.mark.parametrize(
    ("kind", "model", "engine", "weights", "kv"),
    [
        ("llm", "Qwen/Qwen3-4B-AWQ", {"max_model_len": 16384}, 2.48, 2.25),
        ("multimodal", "HuggingFaceTB/SmolVLM2-2.2B-Instruct", {"max_model_len": 8192}, 4.18, 1.5),
        ("multimodal", "Qwen/Qwen3-VL-8B-Instruct", {"max_model_len": 16384}, 16.33, 2.25),
        ("vision/generate", "stabilityai/sdxl-turbo", {"dtype": "float16"}, 6.46, 0),
        ("vision/classify", "google/siglip2-base-patch16-256", {"dtype": "float16"}, 0.70, 0),
        ("embedding", "sentence-transformers/all-MiniLM-L6-v2", {}, 0.08, 0),
        ("audio/generate", "facebook/mms-tts-eng", {"name": "transformers"}, 0.14, 0),
        ("audio/transcribe", "Systran/faster-whisper-small", {}, 0.45, 0),
    ],
)
def test_weights_and_kv_cache_are_those_that_were_counted(
    kind: str, model: str, engine: dict[str, Any], weights: float, kv: float
) -> None:
    found = needs(kind, model, **engine)
    assert abs(gib(found.weights) - weights) <= 0.02
    assert gib(found.kv_cache) == kv


def test_weights_have_the_type_of_the_option_and_quantised_ones_stay() -> None:
    model = "HuggingFaceTB/SmolVLM2-2.2B-Instruct"  # stored in float32, which vLLM halves
    half, full = needs("multimodal", model).weights, needs("multimodal", model, dtype="float32").weights
    assert half is not None
    assert full is not None
    assert full.bytes == 2 * half.bytes
    quantised = needs("llm", "Qwen/Qwen3-4B-AWQ").weights
    assert quantised is not None
    assert quantised == needs("llm", "Qwen/Qwen3-4B-AWQ", dtype="float16").weights


def test_weights_that_are_quantised_or_offloaded_while_they_are_loaded_take_less() -> None:
    model = "Qwen/Qwen3-VL-2B-Instruct"
    whole = needs("multimodal", model).weights
    quantised = needs("multimodal", model, quantization="fp8").weights
    offloaded = needs("multimodal", model, cpu_offload_gb=1).weights
    assert whole is not None
    assert quantised is not None
    assert offloaded is not None
    assert (quantised.bytes, quantised.assumed) == (whole.bytes // 2, True)
    assert offloaded.bytes == whole.bytes - GIB
    stored = needs("llm", "Qwen/Qwen3-4B-AWQ").weights
    assert needs("llm", "Qwen/Qwen3-4B-AWQ", quantization="awq_marlin").weights == stored


def test_two_gpus_have_half_of_weights_and_kv_cache_each() -> None:
    one, two = (needs("llm", "Qwen/Qwen3-32B-AWQ", gpus=gpus, max_model_len=8192) for gpus in (1, 2))
    for each in (one, two):
        assert each.unknown == ()
    assert one.weights is not None
    assert two.weights is not None
    assert one.kv_cache is not None
    assert two.kv_cache is not None
    assert (two.weights.bytes, two.kv_cache.bytes) == (one.weights.bytes // 2, one.kv_cache.bytes // 2)


def test_a_fixed_kv_cache_and_a_fixed_fraction_are_taken_as_they_are() -> None:
    options: dict[str, Any] = {"kv-cache-memory-bytes": GIB, "gpu_memory_utilization": 0.3}
    found = needs("llm", "Qwen/Qwen3-4B-AWQ", **options)
    assert found.kv_cache is not None
    assert (found.kv_cache.bytes, found.memory_fraction) == (GIB, 0.3)


def test_a_smaller_image_and_no_cuda_graphs_take_less() -> None:
    vl = config("Qwen/Qwen3-VL-8B-Instruct")
    largest = image_encoder_bytes(vl, batched_tokens=2048, max_pixels=None)
    assert largest == pytest.approx(2.3e9, rel=0.05)  # 65,536 patches
    assert image_encoder_bytes(vl, batched_tokens=2048, max_pixels=2_000_000) < largest / 6
    assert image_encoder_bytes(config("Qwen/Qwen3-4B-AWQ"), batched_tokens=2048, max_pixels=None) == 0
    graphs, eager = (
        forward_pass_bytes(vl, batched_tokens=2048, sequences=64, eager=eager) or 0 for eager in (False, True)
    )
    assert eager < graphs


@pytest.mark.parametrize("kind", [kind for kind in WORKER_TYPES if kind != "echo"])
def test_of_a_model_about_which_nothing_is_known_the_figures_are_unknown_and_nothing_fails(kind: str) -> None:
    engine: dict[str, Any] = {"name": "transformers"} if kind == "audio/generate" else {}
    found = needs(kind, "org/name", facts=ModelFacts("hf:org/name", "unknown"), **engine)
    assert "weights" in found.unknown


@pytest.mark.parametrize("kind", [kind for kind in WORKER_TYPES if kind != "echo"])
def test_a_configuration_of_another_shape_makes_figures_unknown_and_nothing_fails(kind: str) -> None:
    odd: dict[str, Any] = {"text_config": [], "vision_config": 4, "hidden_size": "wide", "layer_types": 3}
    odd |= {"block_out_channels": "x", "upsample_rates": {}, "image_size": [None], "quantization_config": None}
    files = dict.fromkeys(("config.json", "model_index.json", "vae/config.json", "unet/config.json"), odd)
    engine: dict[str, Any] = {"name": "transformers"} if kind == "audio/generate" else {}
    assert needs(kind, "org/name", facts=ModelFacts("hf:org/name", "a test", configs=files), **engine).unknown


def test_a_type_without_a_statement_counts_the_stored_weights_and_names_the_rest() -> None:
    found = needs("echo", "sentence-transformers/all-MiniLM-L6-v2")
    assert found.weights is not None
    assert found.unknown == ("activations",)


def test_every_built_in_type_with_a_model_states_its_needs() -> None:
    assert [name for name, path in WORKER_TYPES.items() if load_spec(path).memory is None] == ["echo"]
