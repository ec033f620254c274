"""What worker types know of Unicode."""

from __future__ import annotations

import re
import sys
import time
import unicodedata

import pytest

from deployments.text_characters import IGNORABLE, JOINERS, MAX_MARKS, composed

ALL = [chr(code) for code in range(sys.maxunicode + 1)]


@pytest.mark.parametrize(
    "text", ["plain", "e\u0301", "a\u0323\u0307", "a\u0307\u0323", "\uac00", "가" * 300, "⊂\u0338" * 300, "☺" * 300]
)
def test_the_composed_form_is_that_of_unicode(text: str) -> None:
    assert composed(text) == unicodedata.normalize("NFC", text)


def test_as_many_accents_in_a_row_as_any_language_has_are_brought_into_order() -> None:
    text = "a" + "\u0301\u0327" * (MAX_MARKS // 2)
    assert composed(text) == unicodedata.normalize("NFC", text)


def test_endless_accents_take_no_time_and_none_is_lost() -> None:
    text = "a" + "\u0327\u0301" * 65536
    before = time.process_time()
    result = composed(text)
    assert time.process_time() - before < 2  # 13 s with Python's own function
    assert result[0] == "á"
    assert (result.count("\u0327"), result.count("\u0301")) == (65536, 65535)


def test_every_accent_is_found_where_long_rows_are_looked_for() -> None:
    assert not [c for c in ALL if unicodedata.combining(c) and re.match(r"[\w\s\0-\x7f]", c)]


def test_what_may_be_ignored_is_nothing_that_can_be_seen() -> None:
    ignorable = [c for c in ALL if re.match(f"[{IGNORABLE}{JOINERS}]", c)]
    assert {unicodedata.category(c) for c in ignorable} == {"Cf", "Cn", "Lo", "Mn"}
    assert {c for c in ignorable if c.isalnum()} == set("\u115f\u1160\u3164\uffa0")  # Hangul's fillers
    directions_and_marks = "\u200e\u202e\u2066\u180e\ufeff\U000e0041"
    assert set(directions_and_marks) <= set(ignorable)
