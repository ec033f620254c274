"""What all models of the configuration share."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticKnownError


class ConfigModel(BaseModel):
    """A mapping of the configuration: immutable, and an unknown key is an error. The docstrings of its fields are their
    descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_boolean_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `yes` as true, and pydantic true as 1."""
        if isinstance(value, bool) and (kind := _number(cls.model_fields[str(info.field_name)].annotation)):
            raise PydanticKnownError(kind)
        return value


def _number(annotation: Any) -> Any:
    """The kind of the error where a number is required; empty for other types."""
    types = {annotation, *get_args(annotation)}
    return (
        "" if bool in types or Any in types else "int_type" if int in types else "float_type" if float in types else ""
    )
