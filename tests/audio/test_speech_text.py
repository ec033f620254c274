# ruff: noqa: RUF001 - characters that look alike are what is tested
"""Texts that look the same are spoken the same."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deployments.audio import SpeechRequest
from deployments.audio.speech_text import is_speakable, spoken_text

INVISIBLE = "\u00ad\u034f\u200b\u200e\u200f\u202a\u202c\u202e\u2060\u2063\u2066\u2069\ufe0f\ufeff\U000e0041\x00\x7f"
LETTERS = "abcXYZ éñü ộ ẛ̣ Å fi ß 한글 ｶﾞ नमस्ते עִבְרִית русский 9½ ²… ’“—\n\n-.,"
words = st.text(alphabet=LETTERS, max_size=30)


@pytest.mark.parametrize(
    ("typed", "spoken"),
    [
        ("The com\u00adput\u00ader", "The computer"),
        ("The com\u200bput\u2060er\ufeff", "The computer"),
        ("re\u200dmem\u200cber", "remember"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("क्\u200dष", "क्\u200dष"),
        ("\u202eabc\u202c \u2066def\u2069", "abc def"),
        ("go ❤\ufe0f \U0001f469\u200d\U0001f469", "go ❤ \U0001f469\U0001f469"),
        ("cafe\u0301 nai\u0308ve", "café naïve"),
        ("e\u00ad\u0301clair", "éclair"),
        ("\u0301 a", "a"),
        ("a\u00a0b\u2009c\u3000d\te", "a b c d e"),
        ("one\ntwo\r\nthree\rfour\x0bfive\x0csix\x85seven\u2028eight", "one two three four five six seven eight"),
        ("one\n\ntwo\n \t\nthree\u2029four\r\n\r\nfive", "one\ntwo\nthree\nfour\nfive"),
        ("Buy:\n- milk\n* eggs\n1. salt\n(all of it)", "Buy:\n- milk\n* eggs\n1. salt (all of it)"),
        ("the com\u00ad\nputer", "the computer"),
        ("a well-\nknown one", "a well- known one"),
        ("日本\n語", "日本語"),
        ("ﬁnd ﬂow ﬀ ſo ĳs", "find flow ff so ijs"),
        ("Ｆｕｌｌ ｗｉｄｔｈ！", "Full width!"),
        ("\U0001d407\U0001d41e\U0001d425\U0001d425\U0001d428", "Hello"),
        ("well\u2011known, mother\u2010in\u2010law, \u22125", "well-known, mother-in-law, -5"),
        ("don\u00b4t, don`t", "don't, don't"),
        ("½ and 2½ and 3⅓", "1/2 and 2 1/2 and 3 1/3"),
        ("x² and 10³", "x² and 10³"),
        ("10⁶, 10⁻³, 2¹⁰", "10^6, 10^-3, 2^10"),
        ("H₂O, 5㎏, 20℃, №7, Ⅳ", "H2O, 5kg, 20°C, No. 7, IV"),
        ("①②", "1 2"),
        ("so … “he” said — ‘no’", "so … “he” said — ‘no’"),
        ("¨ ¯ µm", "¨ ¯ µm"),
        ("  plain text,  as it was  ", "plain text, as it was"),
        ("Hello.\x00\x08", "Hello."),
        ("", ""),
    ],
)
def test_a_text_is_read_as_a_person_reads_it(typed: str, spoken: str) -> None:
    assert spoken_text(typed) == spoken


@given(words)
def test_the_composed_and_the_decomposed_form_are_one_text(text: str) -> None:
    forms = {spoken_text(unicodedata.normalize(form, text)) for form in ("NFC", "NFD")}
    assert forms == {spoken_text(text)}


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20))
def test_any_text_keeps_its_equivalence_and_is_normalized_once(text: str) -> None:
    once = spoken_text(text)
    assert spoken_text(unicodedata.normalize("NFD", text)) == once
    assert spoken_text(once.replace("\n", "\n\n")) == once
    assert is_speakable(text) == any(map(str.isalnum, once))


@given(words, st.data())
def test_invisible_characters_within_words_change_nothing(text: str, data: st.DataObject) -> None:
    sprinkled = "".join(
        c
        if c.isspace() or (n + 1 < len(text) and text[n + 1].isspace())
        else c + data.draw(st.text(INVISIBLE, max_size=2))
        for n, c in enumerate(text)
    )
    assert spoken_text(sprinkled) == spoken_text(text)


@pytest.mark.parametrize("text", ["\u00ad", "\u3164\u3164", "\u0301\u0302", "\ufeff…\u200b", "\u2028\n", "\u202e!"])
def test_a_text_without_a_letter_is_refused_by_field(text: str) -> None:
    assert not is_speakable(text)
    with pytest.raises(ValidationError, match="has no letter and no digit"):
        SpeechRequest(prompt=text)
