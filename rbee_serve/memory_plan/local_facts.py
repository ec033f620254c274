"""The facts of a model whose files are on this machine: from the headers of its weights and its JSON files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rbee_serve.errors import ConfigurationError
from rbee_serve.memory_plan.model_facts import ModelFacts, WeightFile, is_config
from rbee_serve.model_files.gguf_header import read_gguf_header
from rbee_serve.model_files.json_file import read_json
from rbee_serve.model_files.safetensors_header import read_safetensors_header
from rbee_serve.model_files.weight_files import weights_in

OTHER_WEIGHTS = ("model.bin", "*.gguf")
"""The files of a model without safetensors: of CTranslate2, and GGUF."""


def facts_of_path(ref: str, path: Path) -> ModelFacts:
    """The facts of a folder, or of a GGUF file. Raises `ConfigurationError` for a file that is damaged."""
    if path.is_file():
        return ModelFacts(ref, f"the header of {path.name}", {path.name: _weight_file(path)})
    names = (
        weights_in(path).names
        or [file.name for pattern in OTHER_WEIGHTS for file in sorted(path.glob(pattern)) if file.is_file()][:1]
    )
    weights = {name: _weight_file(path / name) for name in names}
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*.json")}
    configs = {name: _config(file) for name, file in files.items() if is_config(name)}
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
