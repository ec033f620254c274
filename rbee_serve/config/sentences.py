"""A fault in the configuration as a sentence: what the key must be, and what it is."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic.fields import FieldInfo

from rbee_serve.pydantic_rules import rule_of, type_name

_TYPES = {
    "int": "a whole number such as 4",
    "float": "a number such as 0.5",
    "decimal": "a number such as 0.5",
    "bool": "true or false",
    "string": "text",
    "bytes": "text",
    "path": "the path of a file, such as /run/secrets/token",
    "list": "a list such as [a, b]",
    "tuple": "a list such as [a, b]",
    "set": "a list such as [a, b]",
    "frozen_set": "a list such as [a, b]",
    "iterable": "a list such as [a, b]",
    "dict": "a mapping such as {key: value}",
    "mapping": "a mapping such as {key: value}",
    "model": "a mapping such as {key: value}",
    "model_attributes": "a mapping such as {key: value}",
    "dataclass": "a mapping such as {key: value}",
    "is_instance_of": "a value of another type",
    "none": "left out",
    "url": "a URL such as http://host:8000",
}
MAX_VALUE_CHARACTERS = 60
"""Longer values are not repeated in a sentence."""

EXPECTED = "expected"
"""The key of a field's `json_schema_extra` for what the sentence about a wrong pattern or type is to say."""


def sentence_of(kind: str, context: Mapping[str, Any], value: Any, field: FieldInfo | None) -> str:
    """The sentence about a pydantic error of that kind at a value. `field` is the key's, where it is known; the value
    of one with `repr=False`, such as a password, is not repeated."""
    if kind == "missing":
        return "is missing"
    if value is None:
        return "has no value; give it one, or remove the key"
    if kind == "value_error":
        error = context.get("error")
        return str(error) if type(error) is ValueError else "is not valid"
    if kind == "invalid_key":
        return "is a key that is no text; put it in quotes"
    if field is not None and not field.repr:
        value = ...
    expected = next(_expected(field), None) if field is not None else None
    name = type_name(kind)
    if expected is not None and (kind == "string_pattern_mismatch" or name == "string"):
        return f"must be {expected}{_but(value, name)}"
    if name in _TYPES:
        return f"must be {_TYPES[name]}{_but(value, name)}"
    if kind == "finite_number":
        return f"must be a finite number{_but(value, name)}"
    if (rule := rule_of(kind, context)) is not None:
        return f"{rule[1]}{_but(value, name)}"
    return f"is not valid{_but(value, name)}"


def _but(value: Any, expected_type: str) -> str:
    """What the key holds instead. YAML reads some texts as values of other types, which quotes prevent."""
    if expected_type == "string":
        if isinstance(value, bool):
            return f", not {str(value).lower()}; put it in quotes (YAML reads yes, no, on and off as true and false)"
        if isinstance(value, int | float):
            return f", not the number {value}; put it in quotes"
        if isinstance(value, datetime.date):
            return f", not the date {value}; put it in quotes"
    if isinstance(value, bool):
        return f", not {str(value).lower()}"
    if isinstance(value, str | int | float) and len(text := repr(value)) <= MAX_VALUE_CHARACTERS:
        return f", not {text}"
    if expected_type and isinstance(value, dict):
        return ", not a mapping"
    if expected_type and isinstance(value, list):
        return ", not a list"
    return ""


def _expected(field: FieldInfo) -> Iterator[str]:
    """What the field's `json_schema_extra`, or that of a type within its type, expects."""
    yield from _within((field, field.annotation, *field.metadata))


def _within(annotations: tuple[Any, ...]) -> Iterator[str]:
    for annotation in annotations:
        if isinstance(annotation, FieldInfo):
            if isinstance(annotation.json_schema_extra, dict) and EXPECTED in annotation.json_schema_extra:
                yield str(annotation.json_schema_extra[EXPECTED])
        else:
            yield from _within(get_args(annotation) + tuple(getattr(annotation, "__metadata__", ())))
