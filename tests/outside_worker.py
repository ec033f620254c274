"""A worker type that lives outside `deployments`, as somebody else's package would: it counts letters."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, Self

from pydantic import Field

from rbee_serve.backend import InferenceBackend
from rbee_serve.events import End, Event, Metrics, Output, StopReason
from rbee_serve.outputs import OutputValue
from rbee_serve.request import InferenceRequest
from rbee_serve.worker import LoadContext, WorkerSpec


class LetterOutput(OutputValue, frozen=True, kw_only=True, tag="letter"):
    letter: str
    count: int
    i: int

    @classmethod
    def join(cls, values: Sequence[Self]) -> dict[str, Any]:
        return {"letters": {value.letter: value.count for value in values}}


class LetterRequest(InferenceRequest):
    text: Annotated[str, Field(min_length=1, max_length=1000, repr=False)]
    alphabet: Annotated[str, Field(min_length=1, max_length=26)] = "abc"


class LetterBackend(InferenceBackend[LetterRequest, LetterOutput]):
    async def execute(self, request: LetterRequest) -> AsyncGenerator[Event[LetterOutput], None]:
        for i, letter in enumerate(request.alphabet):
            yield Output(LetterOutput(letter=letter, count=request.text.count(letter), i=i))
        yield Metrics({"letters": len(request.alphabet)})
        yield End(tokens_out=len(request.alphabet), decode_time_ms=0, stop_reason=StopReason.COMPLETE)

    def memory_bytes(self) -> int:
        return 26


def load(context: LoadContext) -> LetterBackend:
    return LetterBackend()


SPEC = WorkerSpec(
    name="letters",
    request=LetterRequest,
    outputs=(LetterOutput,),
    load=load,
    warm_up=lambda: LetterRequest(text="warm"),
    needs_model=False,
)
