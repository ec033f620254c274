"""Sequence packing: a batch of texts through a transformer on a CPU without padding.

A padded batch is a matrix whose rows are as long as the longest text, and padding costs as much as tokens. Here the
texts are concatenated into a single row: nearly all of a layer treats tokens independently, and attention is computed
for each text on its own (varlen attention). sentence-transformers uses such rows for FlashAttention on GPUs, with
`cu_seq_lens_q`, so its pooling supports them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any

ATTENTION = "packed"
"""The name of this attention implementation in transformers."""


class CannotPack(Exception):
    """A layer of the model attends to something else than all tokens of a text."""


def use_packed_attention(model: Any) -> int:
    """Make a model of transformers support `packed` features; others work as before. Returns the position of the first
    token.

    Architectures differ, so compare the model's outputs with and without packing before relying on it.
    """
    import transformers
    from transformers import masking_utils

    transformers.AttentionInterface.register(ATTENTION, _attention)
    transformers.AttentionMaskInterface.register(ATTENTION, masking_utils.sdpa_mask)
    model.set_attn_implementation(ATTENTION)
    return next(filter(None, map(_first_position, model.modules())), 0)


def _first_position(module: Any) -> int:
    """RoBERTa and related models start positions after the position of the padding token."""
    padding = getattr(getattr(module, "position_embeddings", None), "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def packed(texts: Sequence[Sequence[int]], first_position: int = 0) -> dict[str, Any]:
    """The features of tokenized texts in one row: `input_ids` and `position_ids` of shape (1, all tokens)."""
    import torch

    lengths = [len(text) for text in texts]
    positions = chain.from_iterable(range(first_position, first_position + length) for length in lengths)
    return {
        "input_ids": torch.tensor([list(chain.from_iterable(texts))]),
        "position_ids": torch.tensor([list(positions)]),
        "cu_seq_lens_q": torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        "text_lengths": lengths,
    }


def _attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    text_lengths: list[int] | None = None,
    position_bias: Any = None,
    **options: Any,
) -> tuple[Any, None]:
    """An attention function of transformers. Tensors have the shape (1, heads, all tokens, head size)."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa

    if text_lengths is None:
        output: tuple[Any, None] = sdpa(
            module, query, key, value, attention_mask, position_bias=position_bias, **options
        )
        return output
    if attention_mask is not None or position_bias is not None:
        raise CannotPack(type(module).__name__)
    parts = zip(*(tensor.split(text_lengths, dim=2) for tensor in (query, key, value)), strict=True)
    return torch.cat([sdpa(module, *part, None, **options)[0] for part in parts], dim=1), None
