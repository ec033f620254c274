"""What worker types know of texts: characters that nobody sees, and in bounded time the composed form and names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

IGNORABLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
"""For a class of a regular expression: Unicode's `Default_Ignorable_Code_Point` without `JOINERS`. Soft hyphens,
zero-width spaces, marks of direction, variation selectors, fillers and tags."""
JOINERS = "\u200c\u200d"
"""The zero-width non-joiner and joiner: invisible, and part of the spelling in some scripts and of many emoji."""
MAX_MARKS = 128
"""Accents in a row that are brought into order. Unicode needs 30, and the time grows with their square."""

_NO_MATCH = "(?!)"
_END = ""
"""Marks where a name ends."""
_MAYBE_MARKS = re.compile(rf"[^\w\s\0-\x7f]{{{MAX_MARKS + 1},}}")
"""Accents are neither letters nor white space, as few other characters are."""


def composed(text: str) -> str:
    """The text in Unicode's normal form C. In longer rows of accents than any language has, they may keep their
    order."""
    if text.isascii():
        return text
    return "".join(unicodedata.normalize("NFC", text[start:end]) for start, end in pairwise(_cuts(text)))


def any_of(names: Iterable[str]) -> str:
    """A regular expression that matches the longest of the names, of which a tokenizer may have thousands: by one look
    at each character of a text. It matches nothing where there are none."""
    tree: dict[str, Any] = {}
    for name in names:
        node = tree
        for character in name:
            node = node.setdefault(character, {})
        node[_END] = {}
    return _expression(tree) or _NO_MATCH


def _cuts(text: str) -> Iterator[int]:
    yield 0
    for run in _MAYBE_MARKS.finditer(text):
        marks = 0
        for position in range(*run.span()):
            marks = marks + 1 if unicodedata.combining(text[position]) else 0
            if marks > MAX_MARKS:
                yield position
                marks = 1
    yield len(text)


def _expression(node: dict[str, Any]) -> str:
    start = ""
    while len(node) == 1 and _END not in node:
        [(character, node)] = node.items()
        start += re.escape(character)
    branches = [re.escape(character) + _expression(after) for character, after in node.items() if character != _END]
    if not branches:
        return start
    return f"{start}(?:{'|'.join(branches)})" + ("?" if _END in node else "")
