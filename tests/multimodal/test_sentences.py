"""Sentence boundaries in a text that is still being generated."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.multimodal.sentences import sentences


async def pieces(*texts: str) -> AsyncIterator[str]:
    for text in texts:
        yield text


async def found(*texts: str) -> list[str]:
    return [sentence async for sentence in sentences(pieces(*texts))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("This is a seven. It is odd.", ["This is a seven. ", "It is odd."]),
        ("Is this a seven? Yes, it is! Good.", ["Is this a seven? ", "Yes, it is! Good."]),
        ('He said "this is a seven." Then he left.', ['He said "this is a seven." ', "Then he left."]),
        ("A line of digits\nseven and eight", ["A line of digits\nseven and eight"]),
        ("A line of digits\r\n \r\nseven and eight", ["A line of digits\r\n \r\n", "seven and eight"]),
        ("A list of digits:\n\nseven and eight", ["A list of digits:\n\n", "seven and eight"]),
        ("A list of digits:\n- seven\n 2) eight\n", ["A list of digits:\n", "- seven\n 2) eight\n"]),
        ("It is 3.14159, more or less.", ["It is 3.14159, more or less."]),
        ("Dr. Smith sees a seven. Mr. Jones sees one.", ["Dr. Smith sees a seven. ", "Mr. Jones sees one."]),
        ("no end at all", ["no end at all"]),
        ("", []),
        ("   ", ["   "]),
    ],
)
async def test_a_text_is_split_where_a_sentence_ends(text: str, expected: list[str]) -> None:
    assert await found(text) == expected
    assert await found(*text) == expected


async def test_a_sentence_is_yielded_when_the_next_one_begins() -> None:
    consumed: list[str] = []

    async def recorded() -> AsyncIterator[str]:
        for piece in ("This is a", " seven.", " ", "It", " goes on"):
            consumed.append(piece)
            yield piece

    assert await anext(aiter(sentences(recorded()))) == "This is a seven. "
    assert consumed[-1] == "It"


@given(st.lists(st.text(alphabet='ab .!?\n"3-', max_size=12), max_size=12))
async def test_the_joined_sentences_are_the_whole_text_for_any_pieces(texts: list[str]) -> None:
    assert "".join(await found(*texts)) == "".join(texts)
    assert await found(*texts) == await found("".join(texts))
