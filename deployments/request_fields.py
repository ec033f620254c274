"""Request fields and bounds that several worker types share."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from deployments.text_characters import IGNORABLE, JOINERS

MAX_FILE_BYTES = 32 * 2**20
"""Size of an uploaded image or audio file."""
MAX_TEXT_CHARACTERS = 131_072
"""Length of a text that becomes a vector or is ranked. It exceeds the context of the models, which is checked in
tokens."""

_VISIBLE = re.compile(rf"[^\s\0-\x1f\x7f-\x9f\u2800{IGNORABLE}{JOINERS}]")
"""A character that can be seen: no white space or control character, no empty Braille pattern, and none that Unicode
says to ignore."""


def is_blank(text: str) -> bool:
    """Whether a text has no visible character."""
    return not _VISIBLE.search(text)  # ends at the first character of nearly every text


def _check_visible(text: str) -> str:
    if is_blank(text):
        raise PydanticCustomError("string_blank", "has no visible character")
    return text


def _left_out_if_any(seed: Any) -> Any:
    return None if type(seed) is int and seed == -1 else seed


NotBlank = AfterValidator(_check_visible)
"""Refuses a text that consists of white space and invisible characters, as `min_length=1` refuses an empty one."""

Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARACTERS), NotBlank]
"""A text that becomes a vector or is ranked."""

Seed = Annotated[Annotated[int, Field(ge=0, le=2**64 - 1)] | None, BeforeValidator(_left_out_if_any)]
"""A seed. `-1`, which many tools send for any seed, is as good as left out."""
