"""The text of a user as data: one form for what looks the same, and no control tokens.

Two texts that differ only in how an accent is stored, or in characters that nobody sees, are the same text to a reader,
and should have the same vector. Tokenizers differ: BERT's ignores both, byte-level BPE makes other tokens of each.
A tokenizer also reads the name of a control token in a text, such as `[SEP]`, as that token. `literal_tokenizer` makes
one that reads it as text, with the tokens of other texts unchanged; where a template adds control tokens of its own,
`ControlNames` splits the names in the text instead.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from deployments.text_characters import any_of, composed

_INVISIBLE = {ord(character): None for character in "\u00ad\u200b\u2060\ufeff"}
"""Soft hyphen, zero width space, word joiner and byte order mark: marks for layout. Joiners stay, as Persian and emoji
are written with them."""

MAX_NAMED = 3
"""Truncated texts that a narration names."""


def canonical(text: str) -> str:
    """The text in Unicode's normal form C and without invisible marks for layout. Most texts are returned as they
    are."""
    if text.isascii():
        return text
    return composed(text.translate(_INVISIBLE))


def literal_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer of transformers itself, which from now on reads names of control tokens in a text as text. It
    still adds its own around a text."""
    tokenizer.split_special_tokens = True
    return tokenizer


class ControlNames:
    """The names of tokenizers' control tokens, of which some have thousands."""

    def __init__(self, *tokenizers: Any) -> None:
        added = [
            token for tokenizer in tokenizers for token in tokenizer.added_tokens_decoder.values() if token.special
        ]
        # Without the space that some begin with: one more before it would make no difference.
        names = {name for token in added if len(name := token.content.strip()) > 1}
        self._pattern = re.compile(any_of(names))

    def found_in(self, text: str) -> bool:
        """Whether the text has such a name in it."""
        return bool(self._pattern.search(text))

    def split(self, text: str) -> str:
        """The text with a space after the first character of each name, so that no tokenizer finds one."""
        while self._pattern.search(text):
            text = self._pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
        return text


def truncation(field: str, lengths: Sequence[int], max_tokens: int) -> str | None:
    """The sentence for a narration where texts are cut to `max_tokens`; None where none is. `lengths` are those of the
    whole texts, by their index in `field`."""
    longer = [(index, length) for index, length in enumerate(lengths) if length > max_tokens]
    if not longer:
        return None
    named = ", ".join(f"{max_tokens} of {length} tokens of {field}[{index}]" for index, length in longer[:MAX_NAMED])
    rest = f" and of {len(longer) - MAX_NAMED} more" if len(longer) > MAX_NAMED else ""
    return f"The model reads {named}{rest}; the rest is cut"
