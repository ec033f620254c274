"""A request type with a field of every kind, for the tests of validation."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rbee_serve.request import InferenceRequest
from rbee_serve.validation.parse import violated

SECRET = "do not leak"
"""Content: it must not appear in a response."""


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["user", "system"]
    text: Annotated[str, Field(max_length=20, repr=False)] = ""


class SampleRequest(InferenceRequest):
    prompt: Annotated[str, Field(min_length=1, max_length=20, repr=False)]
    max_tokens: Annotated[int, Field(ge=1, le=2048)] = 128
    """Tokens to generate."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, lt=1)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**64 - 1)] | None = None
    width: Annotated[int, Field(ge=8, le=1024, multiple_of=8)] = 512
    stop: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(default_factory=list, max_length=4)
    parts: list[Part] = Field(default_factory=list, max_length=10_000)
    either: Annotated[str, Field(max_length=3)] | list[str] = "a"
    labels: dict[str, int] = Field(default_factory=dict)
    logprobs: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.seed == 1:
            raise ValueError("seed must not be 1")
        if self.seed == 2:
            raise ValueError("seed: two is taken")
        if self.seed == 3:
            raise ValueError("give exactly one of seed and width")
        if self.seed == 4:
            raise violated("width", "width * {height}", "choose {another}")
        if self.seed == 5:
            raise UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, "bad")
        return self
