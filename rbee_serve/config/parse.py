"""From the mappings of a file to the models, and from a fault to a sentence with its path."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from rbee_serve.config.application import ApplicationConfig
from rbee_serve.config.worker import WorkerConfig
from rbee_serve.errors import ConfigurationError

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


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The sentence about a key that is none of `known`, with the nearest one of them if there is one."""
    near = difflib.get_close_matches(key, list(known), n=1)
    return f"unknown key; did you mean {near[0]}?" if near else "unknown key"


def _parse(model: type[OptionsT], values: Any, root: tuple[str, ...]) -> OptionsT:
    try:
        return model.model_validate(values)
    except ValidationError as exc:
        lines = [f"{_path((*root, *error['loc']))}: {_sentence(error, model)}" for error in exc.errors()]
        raise ConfigurationError("\n".join(lines)) from None


def _path(loc: tuple[int | str, ...]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return path.removeprefix(".") or "args"


def _sentence(error: Any, root: type[BaseModel]) -> str:
    if error["type"] == "missing":
        return "is missing"
    if error["type"] != "extra_forbidden":
        return str(error["msg"]).removeprefix("Value error, ")
    *parents, key = error["loc"]
    model = _model_at(root, parents)
    if model is WorkerConfig and key in _RENAMED:
        return f"is called {_RENAMED[key]} now; rename the key"
    return unknown_key(str(key), model.model_fields if model else ())


def _model_at(model: type[BaseModel] | None, loc: Iterable[int | str]) -> type[BaseModel] | None:
    """The model of the mapping at path `loc` below `model`; None where it cannot be found."""
    for part in loc:
        if isinstance(part, str):
            field = model.model_fields.get(part) if model else None
            model = _model_within(field.annotation) if field else None
    return model


def _model_within(annotation: Any) -> type[BaseModel] | None:
    """The first model in a field's type, such as `M` in `list[M]` or `M | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_within, get_args(annotation))), None)
