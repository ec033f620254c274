"""Texts of different lengths through a transformer on a CPU, without padding.

A batch is usually a matrix whose rows are as long as the longest text, and what pads the others costs as much as words.
Here the texts stand one after another in a single row: nearly all of a layer treats each token by itself, and
attention, which does not, is computed for one text after another. sentence-transformers knows such rows from
FlashAttention on GPUs, `cu_seq_lens_q` and all, so its pooling takes them as they are.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any

ATTENTION = "packed"
"""The name of this attention in transformers."""


class CannotPack(Exception):
    """A layer of the model looks at something else than all tokens of a text."""


def use_packed_attention(model: Any) -> int:
    """Make a model of transformers understand `packed` features; others it treats as before. Returns the position of
    the first token.

    Whether it does must be tried: architectures differ.
    """
    transformers = importlib.import_module("transformers")
    masks = importlib.import_module("transformers.masking_utils")
    transformers.AttentionInterface.register(ATTENTION, _attention)
    transformers.AttentionMaskInterface.register(ATTENTION, masks.sdpa_mask)
    model.set_attn_implementation(ATTENTION)
    return next(filter(None, map(_first_position, model.modules())), 0)


def _first_position(module: Any) -> int:
    """RoBERTa and its relatives count positions from behind the one that stands for padding."""
    padding = getattr(getattr(module, "position_embeddings", None), "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def packed(texts: Sequence[Sequence[int]], first_position: int = 0) -> dict[str, Any]:
    """The features of texts, given as tokens, in one row: `input_ids` and `position_ids` of shape (1, all tokens)."""
    torch = importlib.import_module("torch")
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
    """An attention function of transformers. Tensors are of shape (1, heads, all tokens, head size)."""
    sdpa = importlib.import_module("transformers.integrations.sdpa_attention").sdpa_attention_forward
    if text_lengths is None:
        made: tuple[Any, None] = sdpa(module, query, key, value, attention_mask, position_bias=position_bias, **options)
        return made
    if attention_mask is not None or position_bias is not None:
        raise CannotPack(type(module).__name__)
    parts = zip(*(tensor.split(text_lengths, dim=2) for tensor in (query, key, value)), strict=True)
    torch = importlib.import_module("torch")
    return torch.cat([sdpa(module, *part, None, **options)[0] for part in parts], dim=1), None
