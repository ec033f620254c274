"""Request types with other maxima, for `limits:` of a worker's configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import Field, TypeAdapter, ValidationError, create_model
from pydantic.fields import FieldInfo

from rbee_serve.errors import ConfigurationError
from rbee_serve.request import InferenceRequest

RequestT = TypeVar("RequestT", bound=InferenceRequest)
_Number = int | float

_MAXIMA = (Le, Lt, MaxLen)
_base_types: dict[type[InferenceRequest], type[InferenceRequest]] = {}
"""From each class created here to the class that other processes can import."""


def with_limits(request_type: type[RequestT], limits: Mapping[str, _Number]) -> type[RequestT]:
    """`request_type` with the given maxima by field; the type itself if there are none.

    A maximum is the upper bound of a number or the maximum length of a text or list. A default above its maximum is
    lowered to it. The same arguments return the same class. Its instances pickle as `request_type`, because the new
    class exists in this process only.

    Raises `ConfigurationError` with one line for each limit that cannot be applied.
    """
    if not limits:
        return request_type
    return cast(type[RequestT], _limited(request_type, tuple(sorted(limits.items()))))


@lru_cache(maxsize=256, typed=True)
def _limited(request_type: type[InferenceRequest], limits: tuple[tuple[str, _Number], ...]) -> type[InferenceRequest]:
    fields: dict[str, Any] = {}
    errors: list[str] = []
    for name, maximum in limits:
        try:
            fields[name] = _field(request_type.model_fields.get(name), maximum)
        except ConfigurationError as exc:
            errors.append(f"limits.{name}: {exc}")
    if errors:
        raise ConfigurationError("\n".join(errors))
    limited = create_model(
        request_type.__name__,
        __base__=request_type,
        __module__=request_type.__module__,
        __doc__=request_type.__doc__,
        **fields,
    )
    _base_types[limited] = _base_types.get(request_type, request_type)
    limited.__reduce__ = _reduce  # type: ignore[method-assign, assignment]
    return limited


def _reduce(request: InferenceRequest) -> tuple[Any, ...]:
    return _restore, (_base_types[type(request)], request.__getstate__())


def _restore(request_type: type[InferenceRequest], state: dict[Any, Any]) -> InferenceRequest:
    request = request_type.__new__(request_type)
    request.__setstate__(state)
    return request


def _field(field: FieldInfo | None, maximum: _Number) -> Any:
    """The field with another maximum, as `create_model` takes it."""
    if field is None:
        raise ConfigurationError("the request has no such field")
    old = _maximum(field.annotation, field.metadata)
    if old is None:
        raise ConfigurationError("the field has no maximum to replace")
    if isinstance(maximum, bool) or not math.isfinite(maximum):
        raise ConfigurationError("must be a finite number")
    if not isinstance(maximum, int) and (isinstance(old, MaxLen) or not _accepts_float(field.annotation)):
        raise ConfigurationError(f"must be an integer, not {maximum}")
    parts = field.asdict()
    attributes = dict(parts["attributes"])
    annotation, metadata = _replace(parts["annotation"], parts["metadata"], maximum)
    default = attributes.pop("default")
    if isinstance(default, int | float) and not isinstance(old, MaxLen):
        default = min(default, maximum)
    bounded = _annotated(annotation, metadata)
    if not field.is_required() and field.default_factory is None:
        _check_default(bounded, default, maximum)
    return Annotated[bounded, Field(**attributes)], ... if field.is_required() else default


def _check_default(bounded: Any, default: Any, maximum: _Number) -> None:
    """Refuse a maximum that makes the default invalid."""
    try:
        TypeAdapter(bounded).validate_python(default)
    except ValidationError:
        raise ConfigurationError(f"the default {default!r} is not valid with the maximum {maximum}") from None


def _maximum(annotation: Any, metadata: list[Any]) -> Le | Lt | MaxLen | None:
    for constraint in _flat(metadata):
        if isinstance(constraint, _MAXIMA):
            return constraint
    for member, its_metadata in _members(annotation):
        if found := _maximum(member, its_metadata):
            return found
    return None


def _replace(annotation: Any, metadata: list[Any], maximum: _Number) -> tuple[Any, list[Any]]:
    """`annotation` and `metadata` with every maximum of the field replaced; items of a list keep theirs."""
    replaced = [type(c)(cast(Any, maximum)) if isinstance(c, _MAXIMA) else c for c in _flat(metadata)]
    for constraint in replaced:
        minimum = _minimum(constraint)
        if minimum is not None and minimum > maximum:
            raise ConfigurationError(f"the maximum {maximum} is below the minimum {minimum}")
    members = tuple(_annotated(*_replace(*member, maximum)) for member in _members(annotation))
    return (Union[members] if members else annotation), replaced  # noqa: UP007 - `|` takes no tuple


def _annotated(annotation: Any, metadata: list[Any]) -> Any:
    return Annotated[annotation, *metadata] if metadata else annotation


def _members(annotation: Any) -> Iterator[tuple[Any, list[Any]]]:
    """The members of a union, each with the metadata that is annotated to it."""
    if get_origin(annotation) not in (Union, UnionType):
        return
    for member in get_args(annotation):
        if get_origin(member) is Annotated:
            inner, *metadata = get_args(member)
            yield inner, metadata
        else:
            yield member, []


def _flat(metadata: list[Any]) -> Iterator[Any]:
    for constraint in metadata:
        yield from constraint.metadata if isinstance(constraint, FieldInfo) else (constraint,)


def _accepts_float(annotation: Any) -> bool:
    return annotation is float or any(member is float for member, _ in _members(annotation))


def _minimum(constraint: Any) -> _Number | None:
    match constraint:
        case Ge(ge):
            return cast(_Number, ge)
        case Gt(gt):
            return cast(_Number, gt)
        case MinLen(min_length):
            return min_length
    return None
