"""A worker type that lives outside `deployments`, as somebody else's package would: it counts letters, in a text or in
a file, and gives the result as a table where one is wanted."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from rbee_serve.content import FileField
from rbee_serve.events import End, Event, Metrics, Output, StopReason
from rbee_serve.outputs import OutputValue
from rbee_serve.request import InferenceRequest
from rbee_serve.result import EncodedResult, Result
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.spec import LoadContext, WorkerSpec


class LetterOutput(OutputValue, frozen=True, kw_only=True, tag="letter"):
    letter: str
    count: int
    i: int

    @classmethod
    def join(cls, values: Sequence[Self]) -> dict[str, Any]:
        return {"letters": {value.letter: value.count for value in values}}


class LetterRequest(InferenceRequest):
    text: Annotated[str | None, Field(min_length=1, max_length=1000, repr=False)] = None
    book: Annotated[bytes | None, Field(min_length=1, max_length=500_000, repr=False), FileField("book")] = None
    alphabet: Annotated[str, Field(min_length=1, max_length=26)] = "abc"
    at_least: Annotated[int, Field(ge=0, le=1000)] = 0
    as_table: bool = False

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.text is None) == (self.book is None):
            raise ValueError("give exactly one of text and book")
        return self


class LetterBackend(InferenceBackend[LetterRequest, LetterOutput]):
    async def execute(self, request: LetterRequest) -> AsyncGenerator[Event[LetterOutput], None]:
        text = request.text or (request.book or b"").decode()
        counts = {letter: text.count(letter) for letter in request.alphabet if text.count(letter) >= request.at_least}
        for i, (letter, count) in enumerate(counts.items()):
            yield Output(LetterOutput(letter=letter, count=count, i=i))
        yield Metrics({"letters": len(request.alphabet)})
        yield End(tokens_out=len(request.alphabet), decode_time_ms=0, stop_reason=StopReason.COMPLETE)

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
    needs_model=False,
    encode_result=encode_result,
)
