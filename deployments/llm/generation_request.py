"""The request fields that all text-generating worker types share, and the messages of a chat."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deployments.request_fields import Seed
from rbee_serve.request import InferenceRequest

Role = Literal["system", "user", "assistant", "tool"]
"""The author of a message."""

Text = Annotated[str, Field(max_length=32768)]
"""The text of a message."""

ContentT = TypeVar("ContentT")


class ChatMessage(BaseModel, Generic[ContentT]):
    """One message of a chat. The worker type decides what its content may be."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    role: Role
    """The author."""
    content: Annotated[ContentT, Field(repr=False)]
    """A text; for multimodal models also a list of parts in their order."""

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        """The name in schemas, without the type of the content."""
        return "ChatMessage"


class GenerationRequest(InferenceRequest):
    """How to generate. Bounds are those of rbee's Rust worker. For a sampling field that is left out the model's own
    default applies (`generation_config.json`), then vLLM's."""

    max_tokens: Annotated[int, Field(ge=1, le=2048)] = 256
    """The largest number of tokens to generate."""
    min_tokens: Annotated[int, Field(ge=0, le=2048)] = 0
    """The number of tokens before which no end token and no stop sequence ends the generation."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0: the likeliest token each time."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Sample from the likeliest tokens that together reach this probability."""
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Sample from this many of the likeliest tokens; 0 for all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Sample from tokens at least this likely, relative to the likeliest."""
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    """Above 1: tokens of prompt and output become less likely."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Above 0: tokens of the output become less likely, once."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Above 0: tokens of the output become less likely, each time they occur."""
    stop: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(default_factory=list, max_length=4)
    """Texts that end the generation. They are not part of the output."""
    seed: Seed = None
    """The same seed and request give the same tokens. -1 is as good as left out."""
    ignore_eos: bool = False
    """Whether to generate past the model's end token, for benchmarks."""
    lora: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """The name of a configured LoRA adapter (`engine.lora_modules`)."""

    @model_validator(mode="after")
    def _check_tokens(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError("min_tokens must not be larger than max_tokens")
        return self
