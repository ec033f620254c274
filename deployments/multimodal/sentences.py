"""Sentence boundaries in a text that is still being generated."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

MIN_CHARACTERS = 12
"""Shorter sentences are joined with the next one, as in `1. …` or `Dr. …`."""

_END = re.compile(r"""(?:[.!?…]+["')\]”]*\s+)|\n[^\S\n]*\n\s*|\u2029\s*|\n[^\S\n]*(?=(?:[-*•]|\d{1,3}[.)])\s)""")
"""A full stop ends a sentence only if white space follows it: it may be a decimal point. So does a blank line, and a
line break before an item of a list; other line breaks are white space."""


async def sentences(pieces: AsyncIterator[str]) -> AsyncIterator[str]:
    """The sentences of the joined pieces, each as soon as the next one has begun. Joined they are the whole text."""
    text = ""
    async for piece in pieces:
        text += piece
        while (end := _sentence_end(text)) is not None:
            yield text[:end]
            text = text[end:]
    if text:
        yield text


def _sentence_end(text: str) -> int | None:
    """Where the first sentence of `text` ends, if another one has begun."""
    for match in _END.finditer(text):
        if match.end() < len(text) and len(text[: match.end()].strip()) >= MIN_CHARACTERS:
            return match.end()
    return None
