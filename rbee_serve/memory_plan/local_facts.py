"""The facts of a model whose files are on this machine: from the headers of its weights and its JSON files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rbee_serve.errors import ConfigurationError
from rbee_serve.memory_plan.model_facts import ModelFacts, WeightFile
from rbee_serve.memory_plan.weight_files import MAX_CONFIG_BYTES, is_config, loaded_weights
from rbee_serve.model_files.gguf_header import read_gguf_header
from rbee_serve.model_files.resolve import read_json
from rbee_serve.model_files.safetensors_header import read_safetensors_header


def facts_of_path(ref: str, path: Path) -> ModelFacts:
    """The facts of a folder, or of a GGUF file. Raises `ConfigurationError` for a file that is damaged."""
    if path.is_file():
        return ModelFacts(ref, f"the header of {path.name}", {path.name: _weight_file(path)})
    names = {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}
    weights = {name: _weight_file(names[name]) for name in loaded_weights(names)}
    configs = {
        name: _config(file)
        for name, file in names.items()
        if is_config(name) and file.stat().st_size <= MAX_CONFIG_BYTES
    }
    return ModelFacts(ref, "the files on this machine", weights, configs)


def _weight_file(path: Path) -> WeightFile:
    size = path.stat().st_size
    if path.suffix == ".gguf":  # it is dequantised, so each element counts as a float
        return WeightFile(size, {"F32": read_gguf_header(path).parameter_count})
    if path.suffix != ".safetensors":
        return WeightFile(size)
    elements: dict[str, int] = {}
    for tensor in read_safetensors_header(path).tensors:
        elements[tensor.type] = elements.get(tensor.type, 0) + tensor.elements
    return WeightFile(size, elements)


def _config(path: Path) -> Mapping[str, Any]:
    try:
        return read_json(path)
    except ConfigurationError:
        return {}  # the loader reports it
