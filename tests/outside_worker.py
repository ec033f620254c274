"""A worker type outside of `deployments`, as in the package of another author: it counts letters in a text or in a
file, and returns the result as a table on request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from rbee_serve.worker import (
    EncodedResult,
    Event,
    FileField,
    InferenceBackend,
    InferenceRequest,
    LoadContext,
    Output,
    OutputValue,
    RequestClock,
    Result,
    WorkerSpec,
)


class LetterOutput(OutputValue, frozen=True, kw_only=True, tag="letter"):
    letter: str
    count: int
    i: int

    @classmethod
    def join(cls, values: Sequence[Self]) -> dict[str, Any]:
        return {"letters": {value.letter: value.count for value in values}}


class LetterRequest(InferenceRequest):
    text: Annotated[str | None, Field(min_length=1, max_length=1000, repr=False)] = None
    """The text, unless there is a book."""
    book: Annotated[bytes | None, Field(min_length=1, max_length=500_000, repr=False), FileField("book")] = None
    """The text as a file."""
    alphabet: Annotated[str, Field(min_length=1, max_length=26)] = "abc"
    """The letters to count."""
    at_least: Annotated[int, Field(ge=0, le=1000)] = 0
    """Letters that are rarer are left out."""
    pause_s: Annotated[float, Field(ge=0, le=10)] = 0
    """Seconds before each letter."""
    as_table: bool = False
    """Whether the result is a file of comma-separated values."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.text is None) == (self.book is None):
            raise ValueError("give exactly one of text and book")
        return self


class LetterBackend(InferenceBackend[LetterRequest, LetterOutput]):
    async def execute(self, request: LetterRequest) -> AsyncGenerator[Event[LetterOutput], None]:
        clock = RequestClock()
        text = request.text or (request.book or b"").decode()
        counts = {letter: text.count(letter) for letter in request.alphabet if text.count(letter) >= request.at_least}
        for i, (letter, count) in enumerate(counts.items()):
            await asyncio.sleep(request.pause_s)
            yield Output(LetterOutput(letter=letter, count=count, i=i))
        for event in clock.complete(self, {"letters": len(request.alphabet)}, tokens_out=len(request.alphabet)):
            yield event

    def memory_bytes(self) -> int:
        return 26


def load(context: LoadContext) -> LetterBackend:
    return LetterBackend()


def encode_result(request: LetterRequest, result: Result) -> EncodedResult | None:
    if not request.as_table:
        return None
    lines = (f"{letter},{count}\n" for letter, count in result.output["letters"].items())
    return EncodedResult("".join(lines).encode(), "text/csv")


SPEC = WorkerSpec(
    name="letters",
    request=LetterRequest,
    outputs=(LetterOutput,),
    load=load,
    warm_up=lambda: LetterRequest(text="warm"),
    long_request=lambda: LetterRequest(text="long", alphabet="abcdefghij", pause_s=0.5),
    needs_model=False,
    encode_result=encode_result,
)
