"""Conversions between the protocol's values and vLLM's: seeds and merged outputs."""

from __future__ import annotations

from collections.abc import Sequence


def fold_seed(seed: int) -> int:
    """A u64 seed for vLLM: vLLM stores int64 and gives -1 a special meaning, so the top bit is dropped."""
    return seed & (2**63 - 1)


def split_text(text: str, token_lengths: Sequence[int]) -> list[str]:
    """`text` divided among its tokens by the length of each token's own text; joined it is `text`.

    vLLM merges the outputs of several steps while its reader is busy. Text is held back for a stop sequence or an
    incomplete character, so the lengths are approximate: the remainder goes to the last token.
    """
    pieces = []
    for length in token_lengths[:-1]:
        pieces.append(text[:length])
        text = text[length:]
    return [*pieces, text]
