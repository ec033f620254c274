"""The protocol of an embedding engine, its common options, and what a model's files define for its vectors."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import Field

from deployments.engine_choice import EngineOptions
from deployments.torch_runtime.vectors import Vector
from rbee_serve.model_files.json_file import read_json

Tokens = Sequence[int]
"""The token ids of one text, including the model's special tokens."""


class EmbeddingEngine(Protocol):
    """A loaded model that turns tokens into vectors."""

    card: ModelCard
    """The model's prompts and vector lengths."""
    tokenizer: Any
    """The model's tokenizer, a `PreTrainedTokenizer` of transformers."""
    max_tokens: int
    """The longest supported text, in tokens."""
    dimensions: int
    """The length of the vectors."""

    def embed(self, texts: Sequence[Tokens]) -> AsyncGenerator[Vector, None]:
        """The vector of each text, in order. Closing the generator cancels the work."""
        ...

    def is_healthy(self) -> bool:
        """False if only a new process can help."""
        ...

    def why_unhealthy(self) -> str | None:
        """See `InferenceBackend.why_unhealthy`."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class EmbeddingOptions(EngineOptions):
    """Options of every embedding engine."""

    prompts: dict[str, str] = Field(default_factory=dict)
    """Prefixes of the texts by the request's `input_type`. They override those in the model's files."""
    default_prompt_name: str | None = None
    """The `input_type` of a request without one; from the model's files if left out."""
    is_matryoshka: bool = False
    """Whether the vectors may be shortened, where the model's `config.json` does not define it."""
    matryoshka_dimensions: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list)
    """The allowed lengths of shortened vectors; any if left out."""


class ModelCard:
    """The prompts and vector lengths of a model, from its files and the options, which win."""

    def __init__(self, folder: Path, options: EmbeddingOptions) -> None:
        config = _read_optional(folder / "config.json")
        sentences = _read_optional(folder / "config_sentence_transformers.json")
        self.prompts: dict[str, str] = {"query": "", "document": "", **sentences.get("prompts", {}), **options.prompts}
        self.default_prompt: str = self.prompts.get(
            options.default_prompt_name or sentences.get("default_prompt_name") or "", ""
        )
        self.lengths: tuple[int, ...] = tuple(
            options.matryoshka_dimensions or config.get("matryoshka_dimensions") or ()
        )
        """The allowed lengths of shortened vectors."""
        self.any_length = not self.lengths and bool(options.is_matryoshka or config.get("is_matryoshka"))
        """Whether vectors may be shortened to any length."""


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
