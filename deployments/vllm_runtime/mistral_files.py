"""Models in Mistral's own layout: `consolidated.safetensors`, `params.json` and `tekken.json`.

Where vLLM finds such weights, it takes them, and Mistral's tokenizer with them. That one has neither the interface of
transformers, which chats need here, nor a template that can be rendered as text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

WEIGHTS = "consolidated*.safetensors"


def has_mistral_weights(folder: Path) -> bool:
    """Whether vLLM loads the folder in Mistral's layout."""
    return any(folder.glob(WEIGHTS))


def tokenizer_option(folder: Path) -> dict[str, Any]:
    """vLLM's `tokenizer_mode`: the tokenizer of transformers in place of Mistral's, where vLLM would take that."""
    return {"tokenizer_mode": "hf"} if has_mistral_weights(folder) else {}
