"""Request fields and bounds that several worker types share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

MAX_FILE_BYTES = 32 * 2**20
"""Size of an uploaded image or audio file."""
MAX_TEXT_CHARACTERS = 131_072
"""Length of a text that becomes a vector or is ranked. It exceeds the context of the models, which is checked in
tokens."""

Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARACTERS)]
