"""The facts of a model as a JSON file, for machines that reach no Hub and for tests.

    {"model_ref": "hf:org/name", "revision": "main", "license": {"name": "apache-2.0", "source": "its model page"},
     "weights": {"source": "…", "assumed": false, "files": {"model.safetensors": {"bytes": 8, "elements": {"F16": 4}}}},
     "config": {"source": "…", "assumed": false, "files": {"config.json": {…}}}}

Every part names its source; it is `assumed` where it could not be looked up.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from rbee_serve.config import parse_mapping
from rbee_serve.config.base import ConfigModel
from rbee_serve.errors import ConfigurationError
from rbee_serve.memory_plan.model_facts import ModelFacts, WeightFile
from rbee_serve.model_files.json_file import read_json


class LicenseFact(ConfigModel):
    """A model's licence."""

    name: str
    """By the Hub's identifier, such as `apache-2.0`."""
    source: str
    """Where it was read."""
    commercial: bool
    """Whether it allows commercial use."""


class WeightFileFact(ConfigModel):
    """One file of weights."""

    bytes: Annotated[int, Field(ge=0)]
    """Its size, or the size of its tensors."""
    elements: dict[str, int] | None = None
    """Elements by safetensors' type, such as `BF16`."""


class WeightsFact(ConfigModel):
    """The files of weights that an engine loads."""

    source: str
    """Where the numbers come from."""
    assumed: bool
    """Whether they could not be looked up."""
    files: dict[str, WeightFileFact]
    """By path in the repository."""


class ConfigFact(ConfigModel):
    """The configuration files."""

    source: str
    """Where they come from."""
    assumed: bool
    """Whether they could not be looked up."""
    files: dict[str, dict[str, Any]]
    """By path in the repository, each with the keys that the plan reads."""


class FactsFile(ConfigModel):
    """One model."""

    model_ref: str
    """As in a worker's configuration."""
    revision: str
    """The revision that the facts are of."""
    license: LicenseFact
    """Its licence."""
    weights: WeightsFact
    """Its weights."""
    config: ConfigFact
    """Its configuration."""

    def facts(self) -> ModelFacts:
        """The facts, with the sources of what is assumed as reasons."""
        return ModelFacts(
            self.model_ref,
            f"{self.weights.source}, revision {self.revision}",
            {path: WeightFile(file.bytes, file.elements) for path, file in self.weights.files.items()},
            self.config.files,
            f"{self.config.source}, revision {self.revision}",
            {name: part.source for name, part in (("weights", self.weights), ("config", self.config)) if part.assumed},
        )


def read_facts_file(path: Path) -> FactsFile:
    """One file. Raises `ConfigurationError` with the path of what is wrong in it."""
    try:
        return parse_mapping(FactsFile, read_json(path))
    except ConfigurationError as exc:
        raise ConfigurationError(f"{path}: {str(exc).removeprefix(f'{path} ')}") from exc


def facts_in_folder(folder: Path) -> Mapping[str, ModelFacts]:
    """The facts of every JSON file of a folder, by `model_ref`. Raises `ConfigurationError`."""
    if not folder.is_dir():
        raise ConfigurationError(f"--facts: {folder} is no folder; name one with a JSON file for each model")
    files = [read_facts_file(path) for path in sorted(folder.glob("*.json"))]
    return {file.model_ref: file.facts() for file in files}
