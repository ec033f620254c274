"""Choose an engine by `engine.name`.

A worker type has a table of engine names and module names. Only the chosen module is imported. An engine module has:

    Options                                  a subclass of `EngineOptions`
    check(worker, options) -> None           raises `ConfigurationError`; runs before Ray starts
    load(context, options, ...) -> engine    loads the model; the worker type defines the protocol of its engines
    memory_needs(worker, options, facts, gpu_bytes) -> MemoryNeeds      see `WorkerSpec.memory`
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from pydantic import ConfigDict

from rbee_serve.config import WorkerConfig, parse_engine
from rbee_serve.config.base import ConfigModel
from rbee_serve.errors import ConfigurationError
from rbee_serve.memory_plan.model_facts import ModelFacts
from rbee_serve.memory_plan.needs import MemoryNeeds


class EngineOptions(ConfigModel):
    """`engine:` of a worker's configuration, for a worker type with several engines."""

    model_config = ConfigDict(frozen=False)

    name: str | None = None
    """The engine; the first one in the worker type's table if left out."""


def choose_engine(engines: Mapping[str, str], worker: WorkerConfig) -> tuple[ModuleType, Any]:
    """The engine module that `engine.name` selects, and its parsed `Options`.

    `engines` maps names to modules; the first one is the default. Raises `ConfigurationError` for an unknown name, and
    with one line for each invalid option.
    """
    name = worker.engine.get("name", next(iter(engines)))
    if not isinstance(name, str) or name not in engines:
        near = difflib.get_close_matches(str(name), engines, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigurationError(f"engine.name: {name!r} is unknown; known are {', '.join(engines)}{hint}")
    module = importlib.import_module(engines[name])
    return module, parse_engine(module.Options, worker)


def engine_memory_needs(
    engines: Mapping[str, str], worker: WorkerConfig, facts: ModelFacts, gpu_bytes: int
) -> MemoryNeeds:
    """What the chosen engine needs, for `WorkerSpec.memory`: `partial(engine_memory_needs, ENGINES)`."""
    module, options = choose_engine(engines, worker)
    needs: MemoryNeeds = module.memory_needs(worker, options, facts, gpu_bytes)
    return needs
