"""Bytes of the KV cache for a token, from the configurations of many families."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.vllm_runtime.kv_cache_size import context_length, kv_bytes_per_token, kv_element_bytes

GROUPED = {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
"""Qwen3-4B: 144 KiB a token."""
LATENT = {"num_hidden_layers": 61, "num_attention_heads": 128, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
"""DeepSeek-V3."""


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (GROUPED, 36 * 2 * 8 * 128 * 2),
        ({"text_config": GROUPED, "vision_config": {"num_hidden_layers": 99}}, 36 * 2 * 8 * 128 * 2),
        ({"num_hidden_layers": 24, "num_attention_heads": 32, "hidden_size": 2048}, 24 * 2 * 32 * 64 * 2),
        ({"n_layer": 12, "n_head": 12, "n_embd": 768}, 12 * 2 * 12 * 64 * 2),
        ({"n_layer": 32, "n_head": 71, "hidden_size": 4544, "multi_query": True}, 32 * 2 * 64 * 2),
        (LATENT, 61 * (512 + 64) * 2),
        (GROUPED | {"sliding_window": 1024}, 36 * 2 * 8 * 128 * 2),
        (
            GROUPED | {"layer_types": ["linear_attention", "linear_attention", "full_attention", "sliding_attention"]},
            2 * 2 * 8 * 128 * 2,
        ),
        ({"thinker_config": {"text_config": GROUPED}}, 36 * 2 * 8 * 128 * 2),
    ],
    ids=["grouped", "nested", "all heads", "gpt2", "one head", "latent", "window", "hybrid", "twice nested"],
)
def test_each_kind_of_attention_has_its_bytes(config: dict[str, Any], expected: int) -> None:
    assert kv_bytes_per_token(config) == expected


@pytest.mark.parametrize("missing", ["num_hidden_layers", "num_attention_heads"])
def test_without_a_dimension_the_bytes_are_unknown(missing: str) -> None:
    config = {"num_hidden_layers": 24, "num_attention_heads": 32, "hidden_size": 2048}
    del config[missing]
    assert kv_bytes_per_token(config) is None


@pytest.mark.parametrize("value", [None, "32", -1, 0, True, [8], 1.5])
def test_a_value_that_is_no_size_counts_as_missing(value: object) -> None:
    assert kv_bytes_per_token(GROUPED | {"num_hidden_layers": value}) is None


def test_gpus_share_the_heads_and_the_layers_until_each_has_one_head() -> None:
    one = kv_bytes_per_token(GROUPED)
    assert one is not None
    assert kv_bytes_per_token(GROUPED, tensor_parallel=2) == one / 2
    assert kv_bytes_per_token(GROUPED, tensor_parallel=8) == one / 8
    assert kv_bytes_per_token(GROUPED, tensor_parallel=16) == one / 8
    assert kv_bytes_per_token(GROUPED, pipeline_parallel=2) == one / 2
    assert kv_bytes_per_token(LATENT, tensor_parallel=8) == kv_bytes_per_token(LATENT)


@pytest.mark.parametrize(
    ("option", "expected"), [(8192, 8192), (None, 40960), (-1, 16), ("auto", 16), ("16k", None), (True, None)]
)
def test_the_length_is_the_option_else_the_models(option: object, expected: int | None) -> None:
    assert context_length({"text_config": {"max_position_embeddings": 40960}}, option) == expected


@pytest.mark.parametrize(
    ("cache", "dtype", "expected"),
    [("auto", None, 2), (None, "float32", 4), ("fp8", "float32", 1), ("fp8_e4m3", None, 1), ("bfloat16", "float32", 2)],
)
def test_an_element_has_the_type_of_the_cache_else_that_of_the_model(
    cache: object, dtype: str | None, expected: int
) -> None:
    assert kv_element_bytes(cache, dtype) == expected
