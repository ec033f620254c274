"""The text that is spoken, from one that was typed, copied from a page or extracted from a book.

Texts that look the same give the same audio: canonically equivalent characters, invisible characters within words,
spaces of any width, ligatures and full-width letters. A line break is a space, and a blank line a pause.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from deployments.text_characters import IGNORABLE, JOINERS, composed

_LINE_END = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028]")
_HYPHENATION = re.compile(r"\u00ad[^\S\n]*\n[^\S\n]*")
"""A soft hyphen at the end of a line, where it is visible: the word continues in the next line."""
_INVISIBLE = re.compile(rf"[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufff9-\ufffc{IGNORABLE}]+")
"""Also control characters, and placeholders for what is no text."""
_JOINERS = re.compile(f"(?<![\u0600-\u1cff])[{JOINERS}]+")
"""Except after a letter of a script in which they change the spelling."""
_ORPHANS = re.compile(r"(?<!\S)[\u0300-\u036f]+")
"""Accents without a letter."""
_APOSTROPHE = re.compile(r"(?<=[^\W\d_])[\u00b4`](?=[^\W\d_])")
_EXPONENT = re.compile("(?<=[0-9])(?:⁻[¹²³⁰⁴-⁹]+|[¹⁰⁴-⁹][¹²³⁰⁴-⁹]*|[²³][¹²³⁰⁴-⁹]+)")
"""Superscript digits after a digit, except squares and cubes, which voices know."""
_LIST_ITEM = re.compile(r"(?:[-*•‣◦▪]|\d{1,3}[.)])\s")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uff0c\u3001\u3002]")
"""Characters of languages that do not write spaces."""

_READ_AS = {"№": "No. ", "\u2010": "-", "\u2011": "-", "\u2212": "-"}
_KEPT = frozenset("\u2024\u2025…µ")
_COMPATIBLE = frozenset(
    "<wide> <narrow> <small> <font> <initial> <medial> <final> <isolated> <vertical> <noBreak> <compat> <square> <sub> "
    "<circle> <fraction>".split()
)
"""Kinds of characters that are read as the ones that they stand for. A superscript is not: 10² is no 102."""
MAX_EXPANSION = 4
"""Characters that one may stand for; longer ones are whole phrases."""


def spoken_text(text: str) -> str:
    """The text for an engine: each paragraph and each item of a list on a line of its own."""
    text = _HYPHENATION.sub("", _LINE_END.sub("\n", text))
    if not text.isascii():
        text = _readable(text)
    text = _INVISIBLE.sub("", text)
    return "\n".join(_paragraphs(text.replace("\u2029", "\n\n").split("\n")))


def is_speakable(text: str) -> bool:
    """Whether `spoken_text` of it has a letter or a digit."""
    return any(map(str.isalnum, text if text.isascii() else spoken_text(text)))


def _readable(text: str) -> str:
    text = composed(_JOINERS.sub("", _INVISIBLE.sub("", text)))
    text = _EXPONENT.sub(lambda digits: "^" + unicodedata.normalize("NFKC", digits[0]).replace("\u2212", "-"), text)
    text = _APOSTROPHE.sub("'", text)
    text = text.translate({ord(c): reading for c in set(text) if (reading := _reading(c)) != c})
    return _ORPHANS.sub("", composed(text))


@lru_cache(maxsize=4096)
def _reading(character: str) -> str:
    """What a person reads where that character stands."""
    if character.isascii() or character in _KEPT or "\u3131" <= character <= "\u318e":  # the letters of Hangul
        return character
    if known := _READ_AS.get(character):
        return known
    if unicodedata.category(character) == "Zs":
        return " "
    kind = unicodedata.decomposition(character).partition(" ")[0]
    meant = unicodedata.normalize("NFKC", character).replace("\u2044", "/")
    if kind not in _COMPATIBLE or len(meant) > MAX_EXPANSION or meant[0] == " ":
        return character
    if kind == "<circle>":
        return f" {meant} "
    return f" {meant}" if kind == "<fraction>" else meant  # 2½ is no 21/2


def _paragraphs(lines: list[str]) -> list[str]:
    paragraphs: list[str] = []
    begins = True
    for line in (" ".join(line.split()) for line in lines):
        if not line:
            begins = True
        elif begins or _LIST_ITEM.match(line):
            paragraphs.append(line)
            begins = False
        else:
            unspaced = _UNSPACED.match(paragraphs[-1][-1]) and _UNSPACED.match(line)
            paragraphs[-1] += line if unspaced else f" {line}"
    return paragraphs
