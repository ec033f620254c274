"""From the mappings of a file to the models, and from a fault to a sentence with its path."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from rbee_serve.config.application import ApplicationConfig
from rbee_serve.config.sentences import sentence_of
from rbee_serve.config.worker import WorkerConfig
from rbee_serve.errors import ConfigurationError

__all__ = ["parse_application", "parse_engine", "parse_mapping", "unknown_key"]

OptionsT = TypeVar("OptionsT", bound=BaseModel)

_RENAMED = {"capacity": "max_ongoing_requests", "queue": "max_queued_requests"}
"""Former keys of `WorkerConfig`, and their names now."""


def parse_application(args: Any) -> ApplicationConfig:
    """`args:` as a model. Raises `ConfigurationError` with one line for each fault, by path."""
    return _parse(ApplicationConfig, args, ())


def parse_engine(options_type: type[OptionsT], worker: WorkerConfig) -> OptionsT:
    """A worker's `engine:` as a model, for engines whose options are validated here. Raises `ConfigurationError` as
    `parse_application` does."""
    return _parse(options_type, worker.engine, ("engine",))


def parse_mapping(model: type[OptionsT], values: Any, path: str = "") -> OptionsT:
    """Another mapping of a file as a model. Raises `ConfigurationError` as `parse_application` does."""
    return _parse(model, values, (path,) if path else ())


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The sentence about a key that is none of `known`, with the nearest one of them if there is one."""
    near = difflib.get_close_matches(key, list(known), n=1)
    return f"unknown key; did you mean {near[0]}?" if near else "unknown key"


def _parse(model: type[OptionsT], values: Any, root: tuple[str, ...]) -> OptionsT:
    try:
        return model.model_validate(values)
    except ValidationError as exc:
        found: dict[str, list[str]] = {}
        for error in exc.errors():
            found.setdefault(_path(model, values, root, error["loc"]), []).append(_sentence(error, model))
        lines = [f"{path}: {_joined(sentences)}" for path, sentences in found.items()]
        raise ConfigurationError("\n".join(lines)) from None


def _path(model: type[BaseModel], values: Any, root: tuple[str, ...], loc: tuple[int | str, ...]) -> str:
    """The path of a pydantic `loc`, without the names of a union's branches, which are not in the file."""
    path = ".".join(root)
    for n, part in enumerate(loc):
        if isinstance(part, int) and not isinstance(values, dict):
            path += f"[{part}]"
        elif (isinstance(values, dict) and part in values) or _has_field(_model_at(model, loc[:n]), str(part)):
            path += f".{part}"
        else:
            continue
        values = values[part] if isinstance(values, dict) and part in values else values
        values = values[part] if isinstance(part, int) and isinstance(values, list) and part < len(values) else values
    return path.removeprefix(".") or "args"


def _has_field(model: type[BaseModel] | None, name: str) -> bool:
    return model is not None and name in model.model_fields


def _joined(sentences: list[str]) -> str:
    """One sentence for the several errors of a union's branches, such as `must be more than 0 or auto, not 'x'`."""
    beginnings = [sentence.partition(", not ")[0] for sentence in dict.fromkeys(sentences)]
    if len(beginnings) == 1 or not all(beginning.startswith("must be ") for beginning in beginnings):
        return sentences[0]
    _, separator, value = sentences[0].partition(", not ")
    return " or ".join([beginnings[0], *(each.removeprefix("must be ") for each in beginnings[1:])]) + separator + value


def _sentence(error: Any, root: type[BaseModel]) -> str:
    if error["type"] != "extra_forbidden":
        return sentence_of(error["type"], error.get("ctx", {}), error["input"], _field_at(root, error["loc"]))
    *parents, key = error["loc"]
    model = _model_at(root, parents)
    if model is WorkerConfig and key in _RENAMED:
        return f"is called {_RENAMED[key]} now; rename the key"
    sentence = unknown_key(str(key), model.model_fields if model else ())
    return _belongs(str(key), root, tuple(parents)) or sentence if model else sentence


def _belongs(key: str, root: type[BaseModel], parents: tuple[int | str, ...]) -> str | None:
    """The sentence about a key that is one of another mapping: of one above this one, or of one in it."""
    for n in reversed(range(len(parents))):
        if isinstance(parents[n], str) and (above := _model_at(root, parents[:n])) and key in above.model_fields:
            return f"is not a key of {parents[-1]}; move it out, beside {parents[n]}"
    here = _model_at(root, parents)
    for name, field in here.model_fields.items() if here else ():
        inner = _model_within(field.annotation)
        if inner is not None and key in inner.model_fields:
            return f"unknown key; it belongs under {name}"
    return None


def _model_at(model: type[BaseModel] | None, loc: Iterable[int | str]) -> type[BaseModel] | None:
    """The model of the mapping at path `loc` below `model`; None where it cannot be found."""
    for part in loc:
        if isinstance(part, str):
            field = model.model_fields.get(part) if model else None
            model = _model_within(field.annotation) if field else None
    return model


def _field_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> FieldInfo | None:
    """The field that a `loc` leads to, or into a value of; None where it cannot be found."""
    field = None
    for part in loc:
        if isinstance(part, str):
            inner = model if field is None else _model_within(field.annotation)
            field = (inner.model_fields.get(part) if inner else None) or field
    return field


def _model_within(annotation: Any) -> type[BaseModel] | None:
    """The first model in a field's type, such as `M` in `list[M]` or `M | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_within, get_args(annotation))), None)
