"""What clients send as a language."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from deployments.audio import TranscribeRequest
from deployments.audio.languages import _CODES, language_code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("en", "en"), ("EN", "en"), ("en-US", "en"), ("en_GB.UTF-8", "en"), (" English ", "en"), ("eng", "en"),
        ("de-CH-1996", "de"), ("Deu", "de"), ("ger", "de"), ("GERMAN", "de"), ("zh-Hant-TW", "zh"), ("cmn", "zh"),
        ("Chinese (simplified)", "zh"), ("pt-BR", "pt"), ("nb-NO", "no"), ("iw", "he"), ("jv", "jw"), ("fil", "tl"),
        ("Haitian Creole", "ht"), ("haitian_creole", "ht"), ("yue", "yue"), ("haw", "haw"), ("xx", "xx"),
        ("auto", None), ("und", None),
    ],
)  # fmt: skip
def test_a_language_is_a_code_of_any_form_or_a_name(text: str, code: str | None) -> None:
    assert language_code(text) == code
    assert TranscribeRequest(audio=b"x", language=text).language == code


@pytest.mark.parametrize("text", ["klingonese", "12", "e", "??", "日本語", "x" * 65])
def test_another_text_is_refused_by_field(text: str) -> None:
    with pytest.raises(ValidationError):
        TranscribeRequest(audio=b"x", language=text)


def test_the_table_has_every_language_of_whisper_by_code_and_name() -> None:
    tokenization = pytest.importorskip("transformers.models.whisper.tokenization_whisper")
    assert {name: language_code(name) for name in tokenization.TO_LANGUAGE_CODE} == tokenization.TO_LANGUAGE_CODE
    assert {code: language_code(code) for code in tokenization.LANGUAGES} == {c: c for c in tokenization.LANGUAGES}
    assert set(_CODES.values()) == set(tokenization.LANGUAGES)
