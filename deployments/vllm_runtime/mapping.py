"""Between the protocol's terms and vLLM's: seeds, stop reasons, merged outputs."""

from __future__ import annotations

from collections.abc import Sequence

from rbee_serve.events import StopReason


def fold_seed(seed: int) -> int:
    """A u64 seed as vLLM takes it: it keeps int64 and gives -1 a meaning of its own, so the top bit is dropped."""
    return seed & (2**63 - 1)


def stop_reason(finish_reason: str | None, matched: int | str | None) -> tuple[StopReason, str | None]:
    """vLLM's `finish_reason` and `stop_reason` in the protocol's words: the reason, and the stop sequence if one
    matched."""
    match finish_reason:
        case "stop" if isinstance(matched, str):
            return StopReason.STOP_SEQUENCE, matched
        case "stop":
            return StopReason.EOS, None
        case "length":
            return StopReason.MAX_TOKENS, None
        case "abort":
            return StopReason.CANCELLED, None
        case _:
            return StopReason.ERROR, None


def split_text(text: str, token_lengths: Sequence[int]) -> list[str]:
    """`text` dealt out to the tokens that made it, by the length of each token's own text; joined it is `text`.

    vLLM merges the outputs of several steps where its reader was busy. Text is held back for a stop sequence or an
    unfinished character, so the lengths are a guide: what is left over goes to the last token.
    """
    pieces = []
    for length in token_lengths[:-1]:
        pieces.append(text[:length])
        text = text[length:]
    return [*pieces, text]
