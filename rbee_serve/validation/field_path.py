"""The location of an error in a request: pydantic's `loc` as a path in the client's terms.

A `loc` has parts that are not in the request: `("prompt", "list[str]", 3)` names the tried branch of a union. To leave
them out, the `loc` is followed through the types of the fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rbee_serve.validation.field_types import fields_of, items_of, members_of, values_of

BODY = "body"
"""The path of the request as a whole."""
MAX_NAME_CHARACTERS = 64
"""Longer names are cut: the client chose them, and every error response repeats them."""


@dataclass(frozen=True, slots=True)
class Location:
    """A location in a request: its `path`, whether it is inside content (a field with `repr=False`), and the field
    names of the object there, if it is one."""

    path: str
    is_content: bool
    field_names: tuple[str, ...]

    def child(self, name: str) -> str:
        """The path of a field of this object."""
        return _name(name) if self.path == BODY else f"{self.path}.{_name(name)}"


def locate(request_type: type[BaseModel], loc: tuple[int | str, ...]) -> Location:
    """The location of a pydantic `loc` in a request of that type."""
    path, is_content = "", False
    types = list(members_of(request_type))
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
            types = [inner for member in types for inner in items_of(member)]
            continue
        if tagged := _tagged(types, part):
            types = tagged
            continue
        fields = [field for field in (fields_of(member).get(part) for member in types) if field is not None]
        values = [value for member in types for value in values_of(member)]
        if fields:
            is_content = is_content or any(_is_content(field) for field in fields)
            types = [inner for field in fields for inner in members_of(field.annotation)]
        elif values and part != "[key]":
            types = values
        else:
            # The name of a union's branch or of a validator, which is not in the request.
            types = [member for member in types if getattr(member, "__name__", None) == part] or types
            continue
        path += f".{_name(part)}"
    field_names = tuple(dict.fromkeys(name for member in types for name in fields_of(member)))
    return Location(path.removeprefix(".") or BODY, is_content, field_names)


def shorten(text: str, max_characters: int) -> str:
    """`text` cut to `max_characters` characters that UTF-8 can encode."""
    text = text[: max_characters + 1].encode(errors="replace").decode()
    return text if len(text) <= max_characters else text[: max_characters - 1] + "…"


def _name(name: str) -> str:
    return shorten(name, MAX_NAME_CHARACTERS) or '""'


def _tagged(members: list[Any], tag: str) -> list[Any]:
    """The branch of a tagged union: of several models, those with a field whose only value is `tag`. A model may also
    have a field of that name."""
    found = [
        member
        for member in members
        if any(get_args(field.annotation) == (tag,) for field in fields_of(member).values())
    ]
    return found if sum(bool(fields_of(member)) for member in members) > 1 else []


def _is_content(field: FieldInfo) -> bool:
    """Whether the field has `repr=False`, also on a member of a union, where pydantic ignores it."""
    return not field.repr or any(
        isinstance(mark, FieldInfo) and not mark.repr
        for member in get_args(field.annotation)
        if get_origin(member) is Annotated
        for mark in get_args(member)[1:]
    )
