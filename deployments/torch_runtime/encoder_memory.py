"""What a forward pass of an encoder on PyTorch holds at its peak, without gradients.

The peak is in the MLP of a layer: its input and output of the inner width, and the residual, the normalised input and
what attention leaves behind. Peaks that were traced with all living storages counted agree: 562 MB for all-MiniLM-L6-v2
with 32,768 tokens in float32 (602 by the formula), 327 MB for siglip2-base-patch16-256 with 64 images in float16 (327).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rbee_serve.memory_plan.transformer_config import HIDDEN, dimension, has_gate, intermediate_size

HIDDEN_STATES = 4
"""Tensors of the hidden size that exist beside those of the inner width."""


def encoder_bytes(config: Mapping[str, Any], *, rows: int, length: int, element_bytes: int) -> int | None:
    """Bytes for a batch of `rows` sequences padded to `length` tokens, with a mask of one byte for each pair of tokens,
    or None where the configuration lacks a dimension."""
    hidden, width = dimension(config, HIDDEN), intermediate_size(config)
    if hidden is None or width is None:
        return None
    inner = (3 if has_gate(config) else 2) * width
    return rows * length * ((HIDDEN_STATES * hidden + inner) * element_bytes + length)


def batch_bytes(config: Mapping[str, Any], *, tokens: int, longest: int, element_bytes: int) -> int | None:
    """The same for a batch of `tokens`, padding included, of texts with at most `longest` of them."""
    longest = max(1, longest)
    return encoder_bytes(config, rows=max(1, tokens // longest), length=longest, element_bytes=element_bytes)
