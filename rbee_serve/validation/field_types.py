"""The types of a request's fields, taken apart: members of unions, fields of models, items and values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo


def members_of(annotation: Any) -> Iterator[Any]:
    """The possible types of a value: the members of a union, without annotations."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from members_of(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from members_of(member)
    else:
        yield annotation


def fields_of(member: Any) -> dict[str, FieldInfo]:
    """The fields of a model by their names in the request; none for another type."""
    if not (isinstance(member, type) and issubclass(member, BaseModel)):
        return {}
    return {alias: field for name, field in member.model_fields.items() for alias in _names(name, field)}


def items_of(member: Any) -> Iterator[Any]:
    """The possible types of an item of a list or tuple."""
    if get_origin(member) is not None and not _is_mapping(member):
        for item in get_args(member):
            yield from members_of(item)


def values_of(member: Any) -> Iterator[Any]:
    """The possible types of a value of a dict."""
    if _is_mapping(member):
        yield from members_of(get_args(member)[1])


def accepts_null(field: FieldInfo) -> bool:
    """Whether null is a value of the field."""
    return any(member in (NoneType, None, Any, object) for member in members_of(field.annotation))


def _names(name: str, field: FieldInfo) -> Iterable[str]:
    alias = field.validation_alias or field.alias
    if isinstance(alias, AliasChoices):
        return [choice for choice in alias.choices if isinstance(choice, str)]
    return [alias if isinstance(alias, str) else name]


def _is_mapping(member: Any) -> bool:
    origin = get_origin(member)
    return isinstance(origin, type) and hasattr(origin, "keys")
