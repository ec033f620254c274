"""The bytes of vLLM's KV cache for one token, from a model's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rbee_serve.memory_plan.model_facts import ELEMENT_BYTES
from rbee_serve.memory_plan.transformer_config import (
    POSITIONS,
    attention_layers,
    dimension,
    head_size,
    kv_heads,
    text_config,
)

BLOCK_TOKENS = 16
"""vLLM's blocks of the KV cache hold so many tokens."""


def kv_bytes_per_token(
    config: Mapping[str, Any], *, element_bytes: int = 2, tensor_parallel: int = 1, pipeline_parallel: int = 1
) -> float | None:
    """Bytes on each GPU for one token of context, or None where the file lacks a dimension.

    Keys and values of each layer with attention, for the heads that have their own (grouped-query attention). Where
    there are more GPUs than such heads, each GPU has one. With multi-head latent attention a layer has one compressed
    vector, which every GPU keeps whole. A sliding window counts like full attention.
    """
    text = text_config(config)
    layers = attention_layers(text)
    if layers is None:
        return None
    layers_here = layers / pipeline_parallel
    if latent := dimension(text, ("kv_lora_rank",)):
        return layers_here * (latent + (dimension(text, ("qk_rope_head_dim",)) or 0)) * element_bytes
    heads, size = kv_heads(text), head_size(text)
    if heads is None or size is None:
        return None
    return layers_here * 2 * max(1.0, heads / tensor_parallel) * size * element_bytes


def context_length(config: Mapping[str, Any], max_model_len: object) -> int | None:
    """The longest request in tokens: the option, else what the model was trained for. -1 lets vLLM choose what fits,
    which is one block at least."""
    if isinstance(max_model_len, int) and not isinstance(max_model_len, bool):
        return max_model_len if max_model_len > 0 else BLOCK_TOKENS
    if max_model_len is not None:
        return BLOCK_TOKENS if max_model_len == "auto" else None
    return dimension(text_config(config), POSITIONS)


def kv_element_bytes(kv_cache_dtype: object, dtype: str | None) -> int:
    """Bytes of one element of the cache. vLLM loads float32 models in half precision unless `dtype` is float32."""
    if isinstance(kv_cache_dtype, str) and kv_cache_dtype.startswith(("fp8", "int8")):
        return 1
    if isinstance(kv_cache_dtype, str) and kv_cache_dtype in ELEMENT_BYTES:
        return ELEMENT_BYTES[kv_cache_dtype]
    return ELEMENT_BYTES.get(dtype or "auto", 2)
