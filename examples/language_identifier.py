"""A worker type in 21 lines: it identifies the language of each line of a text by frequent words.

type: "language_identifier:SPEC"
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from rbee_serve.worker import BlockingBackend, InferenceRequest, OutputValue, WorkerSpec

WORDS = {"de": "der die das und ist nicht", "en": "the of and to is not", "es": "el los y es no", "fr": "le les et est"}


class LanguageRequest(InferenceRequest):
    """A text in any of the languages."""

    text: Annotated[str, Field(min_length=1, max_length=1_000_000, repr=False)]
    """The text; each line is identified on its own."""


class LanguageOutput(OutputValue, frozen=True, kw_only=True, tag="language"):
    """The language of one line, as an ISO 639-1 code, and how many of its words are frequent in that language."""

    language: str
    matches: int
    i: int = 0


class LanguageIdentifier(BlockingBackend[LanguageRequest, LanguageOutput]):
    """Counts frequent words."""

    def predict(self, request: LanguageRequest) -> Iterator[LanguageOutput]:
        """One output for each line."""
        for line in request.text.lower().splitlines():
            best = max((sum(word in known.split() for word in line.split()), code) for code, known in WORDS.items())
            yield LanguageOutput(language=best[1], matches=best[0])


SPEC = WorkerSpec(
    name="language",
    request=LanguageRequest,
    outputs=(LanguageOutput,),
    load=LanguageIdentifier,
    warm_up=lambda: LanguageRequest(text="the cat and the dog"),
    long_request=lambda: LanguageRequest(text="le chat et le chien\n" * 50_000),
    needs_model=False,
)
