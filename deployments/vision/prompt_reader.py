"""What the text encoders of a diffusion pipeline read of a prompt."""

from __future__ import annotations

import copy
import threading
from typing import Any

from deployments.torch_runtime.literal_text import ControlNames, canonical
from deployments.vision.generation_params import parameters

UNBOUNDED = 10**6
"""A `model_max_length` above this stands for none."""


class PromptReader:
    """The tokenizers of a pipeline. May be used from any thread."""

    def __init__(self, pipeline: Any) -> None:
        found = {name: part for name, part in pipeline.components.items() if name.startswith("tokenizer") and part}
        tokenizers = {name: part for name, part in found.items() if hasattr(part, "added_tokens_decoder")}
        self._control_names = ControlNames(*tokenizers.values())
        self._readers = [
            # A copy, because a tokenizer serves one thread at a time and the pipeline uses its own.
            (copy.deepcopy(tokenizer), limit - tokenizer.num_special_tokens_to_add())
            for name, tokenizer in tokenizers.items()
            if (limit := _limit(pipeline, name, tokenizer)) is not None
        ]
        self._lock = threading.Lock()

    def literal(self, text: str) -> str:
        """A user's text as it goes to the pipeline: in canonical form, and without control tokens. The names of these
        are split, since a pipeline may have a template with control tokens of its own."""
        return self._control_names.split(canonical(text))

    def truncation(self, field: str, text: str | None) -> str | None:
        """The sentence for a narration where no encoder reads the whole text; None where one does."""
        if not text:
            return None
        found = [(min(given, limit), given) for given, limit in self._lengths(text)]
        if not found or any(read == given for read, given in found):
            return None
        read, given = max(found)
        return f"The model reads {read} of {given} tokens of {field}; the rest is cut"

    def _lengths(self, text: str) -> list[tuple[int, int]]:
        """For each encoder the tokens of the text, and how many of them it reads."""
        with self._lock:
            return [
                (len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]), limit)
                for tokenizer, limit in self._readers
            ]


def _limit(pipeline: Any, name: str, tokenizer: Any) -> int | None:
    """The most tokens that the encoder of that tokenizer reads; None if its files do not contain it."""
    if "CLIP" in type(tokenizer).__name__:
        return int(tokenizer.model_max_length) if tokenizer.model_max_length < UNBOUNDED else None
    argument = parameters(pipeline).get("max_sequence_length")
    limit = argument.default if argument is not None else tokenizer.model_max_length
    return limit if isinstance(limit, int) and limit < UNBOUNDED else None
