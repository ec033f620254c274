"""What a worker on vLLM needs of each of its GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deployments.vllm_runtime.forward_pass_memory import (
    LARGE_GPU_BYTES,
    LARGE_GPU_TOKENS,
    SMALL_GPU_TOKENS,
    forward_pass_bytes,
    image_encoder_bytes,
)
from deployments.vllm_runtime.kv_cache_size import (
    BLOCK_TOKENS,
    context_length,
    kv_bytes_per_token,
    kv_element_bytes,
)
from deployments.vllm_runtime.parallel_sizes import parallel_size, tensor_parallel_size
from rbee_serve.memory_plan.model_facts import ModelFacts
from rbee_serve.memory_plan.needs import Figure, MemoryNeeds

QUANTISED_AT_LOAD = frozenset(
    {"experts_int8", "fp8", "fp8_per_block", "fp8_per_channel", "fp8_per_tensor", "int8_per_channel_weight_only"}
    | {"mxfp8", "nvfp4_per_token", "online"}
)
"""Values of vLLM's `quantization` that make 8 bits or less of a model's floats while it is loaded."""


def vllm_memory_needs(
    engine: Mapping[str, Any], gpus: float, sequences: int, facts: ModelFacts, gpu_bytes: int, *, images: bool = False
) -> MemoryNeeds:
    """The needs of a model with these options (vLLM's names, with `_` or `-`) on GPUs of `gpu_bytes`.

    `sequences` is the default of `max_num_seqs`; `images`: whether requests may have some. Weights and KV cache
    are exact where the files are known; what a forward pass holds is assumed.
    """
    options = {name.replace("-", "_"): value for name, value in engine.items()}
    config = facts.config()
    tensor, pipeline = tensor_parallel_size(gpus, options), parallel_size(options, "pipeline_parallel_size")
    dtype = options.get("dtype") or "auto"
    # vLLM's `auto` keeps half precision and converts float32 to it.
    stored = facts.weights_figure("bfloat16" if dtype == "auto" else dtype)
    element_bytes = kv_element_bytes(options.get("kv_cache_dtype"), dtype)
    per_token = kv_bytes_per_token(
        config, element_bytes=element_bytes, tensor_parallel=tensor, pipeline_parallel=pipeline
    )
    length = context_length(config, options.get("max_model_len"))
    return MemoryNeeds(
        weights=stored and _weights(stored, options, config, tensor * pipeline),
        kv_cache=_kv_cache(options.get("kv_cache_memory_bytes"), per_token, length, facts),
        kv_tokens=length or 0,
        kv_bytes_per_token=per_token or 0,
        activations=_activations(options, config, tensor, sequences, gpu_bytes, images=images),
        memory_fraction=_fraction(options.get("gpu_memory_utilization")),
    )


def _weights(stored: Figure, options: Mapping[str, Any], config: Mapping[str, Any], parts: int) -> Figure:
    """The weights on one GPU of those that divide the model."""
    count, source, assumed = stored.bytes // parts, stored.source, stored.assumed
    if options.get("quantization") in QUANTISED_AT_LOAD and "quantization_config" not in config:
        count, source, assumed = count // 2, "half of the files, for a model that is quantised while it is loaded", True
    offloaded = options.get("cpu_offload_gb")
    if isinstance(offloaded, int | float) and offloaded > 0:
        count, source = max(0, count - int(offloaded * 1024**3)), f"{source}, less engine.cpu_offload_gb"
    return Figure(count, source, assumed)


def _kv_cache(fixed: object, per_token: float | None, length: int | None, facts: ModelFacts) -> Figure | None:
    if isinstance(fixed, int) and not isinstance(fixed, bool) and fixed > 0:
        return Figure(fixed, "engine.kv_cache_memory_bytes")
    if per_token is None or length is None:
        return None
    blocks = -(-length // BLOCK_TOKENS)
    return facts.config_figure(int(blocks * BLOCK_TOKENS * per_token), "config.json")


def _activations(
    options: Mapping[str, Any], config: Mapping[str, Any], tensor: int, sequences: int, gpu_bytes: int, *, images: bool
) -> Figure | None:
    tokens = options.get("max_num_batched_tokens")
    if not isinstance(tokens, int):
        tokens = LARGE_GPU_TOKENS if gpu_bytes >= LARGE_GPU_BYTES else SMALL_GPU_TOKENS
    seqs = options.get("max_num_seqs")
    text = forward_pass_bytes(
        config,
        batched_tokens=tokens,
        sequences=seqs if isinstance(seqs, int) else sequences,
        tensor_parallel=tensor,
        eager=options.get("enforce_eager") is True,
    )
    if text is None:
        return None
    if images:
        text += image_encoder_bytes(config, batched_tokens=tokens, max_pixels=_max_pixels(options))
    return Figure(text, "an estimate of vLLM's forward pass, sampler and CUDA graphs", assumed=True)


def _max_pixels(options: Mapping[str, Any]) -> int | None:
    """The largest image that the processor leaves as it is, where `mm_processor_kwargs` has it."""
    processor = options.get("mm_processor_kwargs")
    if not isinstance(processor, Mapping):
        return None
    size = processor.get("size")
    pixels = processor.get("max_pixels", size.get("longest_edge") if isinstance(size, Mapping) else None)
    return pixels if isinstance(pixels, int) and pixels > 0 else None


def _fraction(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 < value <= 1 else None
