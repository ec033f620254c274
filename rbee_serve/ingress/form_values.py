"""The text of a form's field, or of a query's, as the value of the request's field."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import from_json

from rbee_serve.validation.field_types import items_of, members_of

_BOOLEANS = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}
"""As JSON, Python, HTML's checkboxes and shells write them, in any case."""
_NULLS = frozenset({"null", "none", "undefined"})
"""As JSON, Python and JavaScript write a value that is not given."""
_NUMBER = re.compile(r"[+-]?([0-9]{1,400}(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")


def is_list(field: FieldInfo) -> bool:
    """Whether the field holds a list, so that a form may give it once for each item."""
    return any(get_origin(member) in (list, tuple, set, frozenset) for member in members_of(field.annotation))


def value_of(text: str, field: FieldInfo) -> Any:
    """Text as the number, boolean, object or list that its field holds, and None for one that stands for null; the text
    itself for a text field, and if it cannot be read: validation then reports the violation."""
    return _value(text, list(members_of(field.annotation)))


def item_of(text: str, field: FieldInfo) -> Any:
    """Text as one item of its field, which is a list."""
    return _value(text, _items(list(members_of(field.annotation))))


def _value(text: str, types: list[Any]) -> Any:
    if any(member is str or _is_text_choice(member, text) for member in types):
        return text
    plain = text.strip()
    if bool in types and plain.lower() in _BOOLEANS and not (plain in "01" and {int, float} & set(types)):
        return _BOOLEANS[plain.lower()]
    if plain.lower() in _NULLS:
        return None
    if items := _items(types):
        value = _json(plain) if plain.startswith("[") else None
        return value if isinstance(value, list) else [_value(text, items)]
    if {int, float} & set(types) and _NUMBER.fullmatch(plain):
        return int(plain) if plain.lstrip("+-").isdecimal() else float(plain)
    value = _json(plain)
    return text if value is None else value


def _json(text: str) -> Any:
    """The value that JSON text holds; None if it is not JSON. The parser is that of JSON bodies: Python's own accepts
    lone surrogates and deeper nesting, which cannot be sent on."""
    try:
        return from_json(text)
    except ValueError:
        return None


def _items(types: list[Any]) -> list[Any]:
    return [item for member in types for item in items_of(member) if get_origin(member) is not Literal]


def _is_text_choice(member: Any, text: str) -> bool:
    """Whether the type is a choice of texts. A misspelt choice is text too."""
    choices = get_args(member) if get_origin(member) is Literal else ()
    return text in choices or (bool(choices) and all(isinstance(choice, str) for choice in choices))
