"""The rule behind each kind of pydantic error, in our words: for requests and for the configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_RULES = {
    "missing": ("required", "is required"),
    "greater_than": ("> {gt}", "must be more than {gt}"),
    "greater_than_equal": (">= {ge}", "must be at least {ge}"),
    "less_than": ("< {lt}", "must be less than {lt}"),
    "less_than_equal": ("<= {le}", "must be at most {le}"),
    "multiple_of": ("multiple of {multiple_of}", "must be a multiple of {multiple_of}"),
    "finite_number": ("finite", "must be a finite number"),
    "string_too_short": ("length >= {min_length}", "must have at least {min_length} characters"),
    "string_too_long": ("length <= {max_length}", "must have at most {max_length} characters"),
    "bytes_too_short": ("length >= {min_length}", "must have at least {min_length} bytes"),
    "bytes_too_long": ("length <= {max_length}", "must have at most {max_length} bytes"),
    "too_short": ("length >= {min_length}", "must have at least {min_length} items"),
    "too_long": ("length <= {max_length}", "must have at most {max_length} items"),
    "base64": ("base64", "must be base64 or a base64 data URL"),
    "string_blank": ("visible characters >= 1", "must not be blank: it has no visible character"),
    "string_pattern_mismatch": ("pattern: {pattern}", "must match {pattern}"),
    "string_unicode": ("unicode", "must be valid Unicode without lone surrogates"),
    "literal_error": ("one of: {expected}", "must be one of {expected}"),
    "enum": ("one of: {expected}", "must be one of {expected}"),
    "union_tag_invalid": ("one of: {expected_tags}", "must have one of {expected_tags} as {discriminator}"),
    "union_tag_not_found": ("required: {discriminator}", "must have the field {discriminator}"),
    "invalid_key": ("type: string", "must have strings as keys"),
}
"""The constraint and the message of each kind, in terms of the error's context. Errors about types are apart."""

_TYPE_ERROR = re.compile(r"(\w+?)_(?:type|parsing|parsing_size|from_float|required)")


def rule_of(kind: str, context: Mapping[str, Any]) -> tuple[str, str] | None:
    """The constraint and the message of an error of that kind, such as `("<= 5", "must be at most 5")`; None for errors
    about types and for unknown kinds."""
    if kind not in _RULES:
        return None
    values = {name: _plain(value) for name, value in context.items()}
    constraint, message = (template.format_map(values) for template in _RULES[kind])
    return constraint, "must not be empty" if values.get("min_length") == "1" else message


def type_name(kind: str) -> str:
    """Pydantic's name of the expected type (`int`, `list`) in an error about a type; empty for other kinds."""
    match = _TYPE_ERROR.fullmatch(kind)
    return match[1] if match else ""


def _plain(value: Any) -> str:
    """A bound as in JSON; a list of choices without quotes: `'a', 'b' or 'c'` is `a, b, c`."""
    if isinstance(value, str):
        return value.replace("' or '", "', '").replace("'", "")
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)
