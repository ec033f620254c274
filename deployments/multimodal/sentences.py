"""Where a sentence ends in a text that is still being written."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

SHORTEST = 12
"""Characters: what is shorter waits for the next sentence, as in `1. …` or `Dr. …`."""

_END = re.compile(r"(?:[.!?…]+[\"')\]”]*\s+)|\n+")
"""A mark that ends a sentence counts once something follows it: a number may go on after its point."""


async def sentences(pieces: AsyncIterator[str]) -> AsyncIterator[str]:
    """The sentences that the pieces make up, each as soon as the next one has begun. Joined they are the whole text."""
    text = ""
    async for piece in pieces:
        text += piece
        while (end := _sentence_end(text)) is not None:
            yield text[:end]
            text = text[end:]
    if text:
        yield text


def _sentence_end(text: str) -> int | None:
    """Where the first sentence of `text` ends, with what is around it, if another one has begun."""
    for match in _END.finditer(text):
        if match.end() < len(text) and len(text[: match.end()].strip()) >= SHORTEST:
            return match.end()
    return None
