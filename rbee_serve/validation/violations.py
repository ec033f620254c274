"""One violation for each pydantic error, with messages of our own.

A pydantic message may quote the input, which may be a prompt, so none is sent to the client: each error type has a
message here, and an unknown type becomes "is not valid".
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails, PydanticCustomError

from rbee_serve.errors import Violation
from rbee_serve.validation.field_path import BODY, Location, locate, shorten

MAX_MESSAGE_CHARACTERS = 240
MAX_VALUE_CHARACTERS = 64
"""Longer texts are not returned: they may be content of a field that is not declared as such."""

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
_TYPES = {
    "int": "integer",
    "float": "number",
    "decimal": "number",
    "bool": "boolean",
    "string": "string",
    "bytes": "string",
    "list": "array",
    "tuple": "array",
    "set": "array",
    "frozen_set": "array",
    "iterable": "array",
    "dict": "object",
    "mapping": "object",
    "model": "object",
    "model_attributes": "object",
    "dataclass": "object",
    "none": "null",
}
_TYPE_ERROR = re.compile(r"(\w+?)_(?:type|parsing|parsing_size|from_float|required)")
_ARTICLE = {"null": "", "integer": "an ", "array": "an ", "object": "a JSON "}
_FIELD_FIRST = re.compile(r"([A-Za-z_]\w*)(?::\s*|\s+)(\S.*)", re.DOTALL)
_SEPARATOR = re.compile(r"[.\[]")
_VIOLATED = "violated"


def violated(field: str, constraint: str, message: str) -> PydanticCustomError:
    """The exception for a validator to raise about one field: `raise violated("width", "width * height <= 1048576",
    "choose a …")`.

    A plain `ValueError` also works: the client gets its message, and if that begins with the name of a field
    (`min_tokens must not be …`) the violation belongs to that field. The message of any other exception is never sent.
    """
    return PydanticCustomError(_VIOLATED, "{message}", {"field": field, "constraint": constraint, "message": message})


def violation_of(request_type: type[BaseModel], error: ErrorDetails) -> Violation:
    """The violation for a pydantic error about a request of that type."""
    kind, loc, context = error["type"], error["loc"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_field(locate(request_type, loc[:-1]), str(loc[-1]))
    location = locate(request_type, loc)
    if kind == _VIOLATED:
        return _violation(location.child(context["field"]), context["constraint"], context["message"])
    if kind == "value_error":
        return _broken_rule(location, context["error"])
    if kind in _RULES:
        values = {name: _plain(value) for name, value in context.items()}
        constraint, message = (template.format_map(values) for template in _RULES[kind])
        if values.get("min_length") == "1":
            message = "must not be empty"
    elif (match := _TYPE_ERROR.fullmatch(kind)) and match[1] in _TYPES:
        constraint, message = _type_rule([_TYPES[match[1]]])
    else:
        constraint, message = kind, "is not valid"
    violation = _violation(location.path, constraint, message)
    value = error["input"]
    if kind == "missing" or location.is_content or location.path == BODY or not _is_showable(value):
        return violation
    return replace(violation, value=value, has_value=True)


def merged(violations: Sequence[Violation]) -> list[Violation]:
    """One violation per location for the several errors of a union.

    Each branch of a union reports an error. One that is not about the type is the most specific, so type errors at the
    same location are dropped beside it. If all are type errors they become one: `type: string | array`.
    """
    by_field: dict[str, list[Violation]] = {}
    for violation in violations:
        by_field.setdefault(violation.field, []).append(violation)
    parents = {field[: separator.start()] for field in by_field for separator in _SEPARATOR.finditer(field)}
    result: list[Violation] = []
    for field, found in by_field.items():
        others = [violation for violation in found if not violation.constraint.startswith("type: ")]
        if others:
            result += dict.fromkeys(others)
        elif field not in parents:
            names = dict.fromkeys(violation.constraint.removeprefix("type: ") for violation in found)
            constraint, message = _type_rule(list(names))
            result.append(replace(found[0], constraint=constraint, message=message))
    return result


def _type_rule(names: list[str]) -> tuple[str, str]:
    described = " or ".join(_ARTICLE.get(name, "a ") + name for name in names)
    return "type: " + " | ".join(names), f"must be {described}"


def _unknown_field(parent: Location, name: str) -> Violation:
    message = "is not a field of this request" if parent.path == BODY else "is not a field of this object"
    # A long name is no typing error, and matching it is slow.
    near = difflib.get_close_matches(name.lower(), parent.field_names, n=1) if len(name) <= MAX_VALUE_CHARACTERS else []
    return _violation(parent.child(name), "unknown field", f"{message}; did you mean {near[0]}?" if near else message)


def _broken_rule(location: Location, cause: Exception) -> Violation:
    """The message of a validator's `ValueError`. A subclass comes from another library and may quote the input."""
    message = str(cause) if type(cause) is ValueError else "is not valid"
    match = _FIELD_FIRST.fullmatch(message)
    if match and match[1] in location.field_names:
        return _violation(location.child(match[1]), "rule", match[2])
    return _violation(location.path, "rule", message)


def _violation(field: str, constraint: str, message: str) -> Violation:
    return Violation(field, shorten(constraint, MAX_MESSAGE_CHARACTERS), shorten(message, MAX_MESSAGE_CHARACTERS))


def _plain(value: Any) -> str:
    """A bound as in JSON; a list of choices without quotes: `'a', 'b' or 'c'` is `a, b, c`."""
    if isinstance(value, str):
        return value.replace("' or '", "', '").replace("'", "")
    return f"{value:g}" if isinstance(value, float) and value.is_integer() else str(value)


def _is_showable(value: Any) -> bool:
    """Whether the value is short and a JSON scalar."""
    if isinstance(value, str):
        return len(value) <= MAX_VALUE_CHARACTERS and shorten(value, MAX_VALUE_CHARACTERS) == value
    if isinstance(value, int):  # includes booleans
        return -(2**63) <= value < 2**64
    return value is None or (isinstance(value, float) and math.isfinite(value))
