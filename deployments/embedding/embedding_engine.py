"""What the embedding worker asks of an engine, and what a model's files say of its vectors."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from deployments.torch_runtime.vectors import Vector
from rbee_serve.model_files.resolve import read_json

Tokens = Sequence[int]
"""The tokens of one text, the model's special ones included."""


class EmbeddingEngine(Protocol):
    """A loaded model that turns tokens into vectors."""

    tokenizer: Any
    """The model's tokenizer, as transformers has it."""
    max_tokens: int
    """The longest text that the model takes, in tokens."""
    dimensions: int
    """The length of its vectors."""

    def embed(self, texts: Sequence[Tokens]) -> AsyncGenerator[Vector, None]:
        """The vector of each text, in order. Closing the generator stops the work."""
        ...

    def is_healthy(self) -> bool:
        """False if only a new process can help."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class EmbeddingOptions(BaseModel):
    """What every engine of an embedding worker understands under `engine:`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: Literal["sentence-transformers", "vllm"] = "sentence-transformers"
    """The engine."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """What is put before a text, by the request's `input_type`; beside, and before, those in the model's files."""
    default_prompt_name: str | None = None
    """The `input_type` of a request that names none; the one in the model's files if left out."""
    is_matryoshka: bool = False
    """Whether the model's vectors may be shortened, where its `config.json` does not say so."""
    matryoshka_dimensions: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list)
    """The lengths to which they may be shortened; any, if left out."""


class ModelCard:
    """What the files of a model, and the options where they say more, tell of its prompts and its vectors."""

    def __init__(self, folder: Path, options: EmbeddingOptions) -> None:
        model, sentences = _optional(folder / "config.json"), _optional(folder / "config_sentence_transformers.json")
        self.prompts: dict[str, str] = {"query": "", "document": "", **sentences.get("prompts", {}), **options.prompts}
        self.default_prompt: str = self.prompts.get(
            options.default_prompt_name or sentences.get("default_prompt_name") or "", ""
        )
        self.lengths: tuple[int, ...] = tuple(options.matryoshka_dimensions or model.get("matryoshka_dimensions") or ())
        """The lengths to which its vectors may be shortened."""
        self.any_length = not self.lengths and bool(options.is_matryoshka or model.get("is_matryoshka"))
        """Whether they may be shortened to any length."""


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
