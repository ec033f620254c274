"""Resolves the name of a worker type to its `WorkerSpec`, by import string."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

from rbee_serve.errors import ConfigurationError
from rbee_serve.worker.spec import WorkerSpec


def import_path(type_name: str, task: str | None, table: Mapping[str, str]) -> str:
    """The import string `module:ATTRIBUTE` of a worker type: from `table`, or the name itself where it is one.

    The keys of `table` are types, or `type/task` where a type has several tasks; the first task is the default. Raises
    `ConfigurationError` whose message begins with the wrong key.
    """
    tasks = [name.partition("/")[2] for name in table if name.partition("/")[0] == type_name]
    if not tasks and ":" not in type_name:
        known = sorted({name.partition("/")[0] for name in table})
        near = difflib.get_close_matches(type_name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}, or 'module:ATTRIBUTE'"
        raise ConfigurationError(f"type: worker type {type_name!r} is unknown; {hint}")
    if task is not None and task not in tasks:
        raise ConfigurationError(
            f"task: {task!r} is unknown; {type_name} has {', '.join(filter(None, tasks)) or 'none'}"
        )
    if not tasks:
        return type_name
    chosen = task or tasks[0]
    return table[f"{type_name}/{chosen}" if chosen else type_name]


def load_spec(path: str) -> WorkerSpec[Any]:
    """Import the spec at `module:ATTRIBUTE`.

    Raises `ConfigurationError` where the module or the attribute is missing or is no `WorkerSpec`. An error inside the
    module is raised as it is: its traceback shows the place in that package.
    """
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not (module_name == exc.name or module_name.startswith(exc.name + ".")):
            raise
        raise ConfigurationError(
            f"type: {path!r}: there is no module {exc.name}; install its package or correct the name"
        ) from None
    spec = getattr(module, attribute, None)
    if not isinstance(spec, WorkerSpec):
        raise ConfigurationError(f"type: {path!r}: {module_name} has no WorkerSpec named {attribute or '?'}")
    return spec


def missing_module(spec: WorkerSpec[Any]) -> str | None:
    """The first module that the worker type needs and that is not installed."""
    return next((name for name in spec.modules if importlib.util.find_spec(name) is None), None)


def extras_for(accelerator: str, extra: str) -> str:
    """The extras to install for a device: `gpu` in place of `cpu` for `cuda`. The two are builds of the same
    packages."""
    names = extra.split(",")
    return ",".join("gpu" if name == "cpu" and accelerator == "cuda" else name for name in names)


def import_engine(name: str, extra: str) -> Any:
    """Import the heavy module `name`, for worker types that choose among several engines. Raises `ConfigurationError`
    with the extra of rbee-serve that installs it."""
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        raise ConfigurationError(f"the module {name} is not installed; pip install 'rbee-serve[{extra}]'")
    return importlib.import_module(name)
