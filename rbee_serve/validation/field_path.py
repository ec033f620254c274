"""Where in a request an error lies: pydantic's `loc` told as a path that the client knows.

A `loc` holds more than the client wrote: `("prompt", "list[str]", 3)` names the branch of a union that was tried. To
leave such parts out, the location is followed through the types of the fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

BODY = "body"
"""The path of the request as a whole."""
MAX_NAME = 64
"""Longer names are cut: the client chose them, and they come back in every answer."""

Location = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """One place in a request: its `path`, whether it lies within content (a field with `repr=False`), and the names
    that the object at this place knows, where it is one."""

    path: str
    is_content: bool
    names: tuple[str, ...]

    def child(self, name: str) -> str:
        """The path of a field of this object."""
        return _name(name) if self.path == BODY else f"{self.path}.{_name(name)}"


def locate(request_type: type[BaseModel], loc: Location) -> Place:
    """The place that `loc` points to."""
    path, is_content = "", False
    here = list(_members(request_type))
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
            here = [inner for member in here for inner in _items(member)]
            continue
        if tagged := _tagged(here, part):
            here = tagged
            continue
        fields = [field for field in (_fields(member).get(part) for member in here) if field is not None]
        values = [value for member in here for value in _values(member)]
        if fields:
            is_content = is_content or any(_is_content(field) for field in fields)
            here = [inner for field in fields for inner in _members(field.annotation)]
        elif values and part != "[key]":
            here = values
        else:
            # The name of a union's branch, or of a validator: the client did not write it.
            here = [member for member in here if getattr(member, "__name__", None) == part] or here
            continue
        path += f".{_name(part)}"
    names = tuple(dict.fromkeys(name for member in here for name in _fields(member)))
    return Place(path.removeprefix(".") or BODY, is_content, names)


def shorten(text: str, longest: int) -> str:
    """`text` in at most `longest` characters that UTF-8 can encode."""
    text = text[: longest + 1].encode(errors="replace").decode()
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _name(name: str) -> str:
    return shorten(name, MAX_NAME) or '""'


def _members(annotation: Any) -> Iterator[Any]:
    """The types that a value may have: unions and annotations are taken apart."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield annotation


def _tagged(members: list[Any], tag: str) -> list[Any]:
    """Of several models those with a field that can be nothing but `tag`: the branch of a tagged union. A model may
    have a field of that name as well."""
    found = [
        member for member in members if any(get_args(field.annotation) == (tag,) for field in _fields(member).values())
    ]
    return found if sum(bool(_fields(member)) for member in members) > 1 else []


def _fields(member: Any) -> dict[str, FieldInfo]:
    """The fields of a model, by the names that a client uses."""
    if not (isinstance(member, type) and issubclass(member, BaseModel)):
        return {}
    return {alias: field for name, field in member.model_fields.items() for alias in _names(name, field)}


def _names(name: str, field: FieldInfo) -> Iterable[str]:
    alias = field.validation_alias or field.alias
    if isinstance(alias, AliasChoices):
        return [choice for choice in alias.choices if isinstance(choice, str)]
    return [alias if isinstance(alias, str) else name]


def _items(member: Any) -> Iterator[Any]:
    if get_origin(member) is not None and not _is_mapping(member):
        for item in get_args(member):
            yield from _members(item)


def _values(member: Any) -> Iterator[Any]:
    if _is_mapping(member):
        yield from _members(get_args(member)[1])


def _is_mapping(member: Any) -> bool:
    origin = get_origin(member)
    return isinstance(origin, type) and hasattr(origin, "keys")


def _is_content(field: FieldInfo) -> bool:
    """`repr=False`, also where it was written at a member of a union, where pydantic passes over it."""
    return not field.repr or any(
        isinstance(mark, FieldInfo) and not mark.repr
        for member in get_args(field.annotation)
        if get_origin(member) is Annotated
        for mark in get_args(member)[1:]
    )
