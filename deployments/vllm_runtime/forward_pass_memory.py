"""An estimate of what vLLM holds beside weights and KV cache: the profiled forward pass, the sampler, CUDA graphs.

vLLM measures the first two when it starts and takes them from its budget. The estimate follows the tensors that exist
at once; it was not compared with a GPU, so the memory plan marks it as assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rbee_serve.memory_plan.transformer_config import (
    HIDDEN,
    dimension,
    has_gate,
    intermediate_size,
    text_config,
    vision_config,
)

MIB = 1024**2

SMALL_GPU_TOKENS, LARGE_GPU_TOKENS = 2048, 8192
"""vLLM's default of `max_num_batched_tokens` for a server, on GPUs below and from 70 GiB (`EngineArgs.
get_batch_defaults` of vLLM 0.32)."""
LARGE_GPU_BYTES = 70 * 1024**3

GRAPHS_BYTES = 512 * MIB
"""CUDA graphs of a model with up to 64 sequences, and the libraries' workspaces; users report 0.3 to 0.6 GiB."""
EAGER_BYTES = 128 * MIB
"""The workspaces alone."""

HIDDEN_STATES = 4
"""Tensors of the hidden size that exist at once in a layer: residual, normalised input, attention and its output."""

SAMPLER_BYTES = 22
"""Bytes for each sequence and each token of the vocabulary: logits in half and single precision, probabilities,
their sorted copy with 64-bit indices, and the sum."""

MAX_TILES = 17
"""Tiles of the largest image of models that divide it (Idefics3, SmolVLM: 4 x 4, and one of the whole)."""

DEFAULT_MAX_PIXELS = 16_777_216
"""The largest image of Qwen's processors by default: 16,384 tokens of 32 x 32 pixels."""


def forward_pass_bytes(
    config: Mapping[str, Any], *, batched_tokens: int, sequences: int, tensor_parallel: int = 1, eager: bool = False
) -> int | None:
    """Bytes on each GPU, or None where the file lacks a dimension."""
    text = text_config(config)
    hidden, width = dimension(text, HIDDEN), intermediate_size(text)
    if hidden is None or width is None:
        return None
    vocabulary = dimension(text, ("vocab_size",)) or dimension(config, ("vocab_size",)) or 0
    mlp = (3 if has_gate(text) else 2) * width / tensor_parallel
    layer = batched_tokens * (HIDDEN_STATES * hidden + mlp) * 2
    return int(layer + sequences * vocabulary * SAMPLER_BYTES + (EAGER_BYTES if eager else GRAPHS_BYTES))


def image_encoder_bytes(config: Mapping[str, Any], *, batched_tokens: int, max_pixels: int | None) -> int:
    """Bytes for the images that vLLM encodes in one step: the largest one, or as many as a step has tokens for. 0 for
    a model without an image encoder."""
    vision = vision_config(config)
    hidden, width = dimension(vision, HIDDEN), intermediate_size(vision)
    patch = _side(vision.get("patch_size")) or 14
    if hidden is None or width is None:
        return 0
    merge = dimension(vision, ("spatial_merge_size",)) or dimension(config, ("scale_factor",)) or 1
    tile = _side(vision.get("image_size"))
    if tile is not None:
        largest = (tile // patch) ** 2 * (MAX_TILES if dimension(config, ("scale_factor",)) else 1)
    else:
        largest = (max_pixels or DEFAULT_MAX_PIXELS) // patch**2
    patches = max(largest, batched_tokens * merge**2)
    # Three of the inner width, gate or not: queries, keys and values exist in two types while they are rotated.
    return patches * (HIDDEN_STATES * hidden + 3 * width) * 2


def _side(value: object) -> int | None:
    """A side in pixels, of a number or of a pair."""
    if isinstance(value, list | tuple) and value:
        value = value[0]
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
