"""What all models of the configuration share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ConfigModel(BaseModel):
    """A mapping of the configuration: immutable, and an unknown key is an error. The docstrings of its fields are their
    descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
