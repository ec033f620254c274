"""What is known of a model without loading it: the sizes of its weights and its configuration files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

from rbee_serve.memory_plan.needs import Figure
from rbee_serve.model_files.safetensors_header import BITS

FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
"""Types of safetensors that a loader converts to its `dtype`. Quantised weights stay as they are stored."""

ELEMENT_BYTES = {"float16": 2, "half": 2, "bfloat16": 2, "float32": 4, "float": 4}
"""Bytes of one element, by torch's and vLLM's names."""


CONFIGS = ("config.json", "*/config.json", "model_index.json", "sentence_bert_config.json")
"""The configuration files that the plan reads, as patterns."""


def is_config(path: str) -> bool:
    """Whether the plan reads this file of a model: at its root, or in the folder of a part."""
    return path.count("/") <= 1 and any(fnmatch(path, pattern) for pattern in CONFIGS)


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A file of weights: its size, and the number of elements by safetensors' type, or None where that is unknown."""

    bytes: int
    elements: Mapping[str, int] | None = None

    def memory_bytes(self, dtype: str | None) -> int:
        """Bytes in memory with floats of that type; as stored if it is None, unknown or `auto`."""
        element_bytes = ELEMENT_BYTES.get(dtype or "auto")
        if self.elements is None or (element_bytes is None and self.bytes):
            return self.bytes
        return sum(
            count * element_bytes if element_bytes and kind in FLOATS else count * BITS[kind] // 8
            for kind, count in self.elements.items()
        )


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model before it is loaded. `ref` is its `model_ref`; `source` names where the facts come from."""

    ref: str
    source: str
    weights: Mapping[str, WeightFile] = field(default_factory=dict)
    """The files that an engine loads, by path in the repository; empty if unknown."""
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The JSON files of its configuration by path, such as `config.json`."""
    config_source: str = ""
    """Where the configuration comes from, if not from `source`."""
    assumed: Mapping[str, str] = field(default_factory=dict)
    """Where the facts are estimates: `weights` or `config`, each with its reason."""

    def config(self, path: str = "config.json") -> Mapping[str, Any]:
        """A configuration file; empty if it is missing."""
        return self.configs.get(path, {})

    def config_figure(self, count: int, what: str) -> Figure:
        """Bytes that are computed from the configuration; `what` names the file, or what was computed."""
        reason = self.assumed.get("config")
        return Figure(count, reason or f"{what}, {self.config_source or self.source}", reason is not None)

    def weights_figure(self, dtype: str | None = None, parts: Collection[str] | None = None) -> Figure | None:
        """The weights in memory with floats of type `dtype`, or None if they are unknown. `parts` are the folders to
        count, all if None."""
        files = [
            file
            for path, file in self.weights.items()
            if parts is None or (path.rpartition("/")[0] or ".").partition("/")[0] in parts
        ]
        if not files:
            return None
        reason = self.assumed.get("weights")
        return Figure(sum(file.memory_bytes(dtype) for file in files), reason or self.source, reason is not None)
