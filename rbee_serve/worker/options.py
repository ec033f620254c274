"""The base class of an engine's options."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class EngineOptions(BaseModel):
    """Base of the options under `engine:` of a worker. An unknown key is an error, and the string literal below a field
    is its description. `parse_engine` reads a worker's options."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
