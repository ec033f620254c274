"""Values that clients write in another way and that mean the same: null for a field that is left out, 16.0 for 16.

Languages with one type for numbers (Lua) write `16.0`, and libraries with typed requests write null for each field that
is not set. Both are invalid for strict types, so only a request that was refused is looked through.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from rbee_serve.validation.field_types import accepts_null, fields_of, items_of, members_of, values_of

MAX_EXACT = 2**53
"""Floats hold every integer up to here exactly."""


def with_equivalents(request_type: type[BaseModel], fields: Any) -> Any:
    """`fields` without null for fields whose type has no null, and with integers for whole numbers where an integer
    belongs; `fields` itself if there is nothing of the kind. The argument is not changed."""
    return _equivalent(fields, [request_type])


def _equivalent(value: Any, types: list[Any]) -> Any:
    if not types:
        return value
    if isinstance(value, float):
        is_whole = value.is_integer() and abs(value) < MAX_EXACT and int in types and float not in types
        return int(value) if is_whole else value
    if isinstance(value, list):
        items = [item for member in types for item in items_of(member)]
        changed: Any = [_equivalent(item, items) for item in value]
        return changed if any(new is not old for new, old in zip(changed, value, strict=True)) else value
    if isinstance(value, dict):
        changed = _equivalent_object(value, types)
        is_same = len(changed) == len(value) and all(changed[key] is value[key] for key in value)
        return value if is_same else changed
    return value


def _equivalent_object(value: dict[Any, Any], types: list[Any]) -> dict[Any, Any]:
    models = [known for member in types if (known := fields_of(member))]
    values = [inner for member in types for inner in values_of(member)]
    changed = {}
    for key, item in value.items():
        fields = [known[key] for known in models if key in known]
        if item is None and fields and not any(map(accepts_null, fields)):
            continue
        inner = [member for field in fields for member in members_of(field.annotation)] if fields else values
        changed[key] = _equivalent(item, inner)
    return changed
