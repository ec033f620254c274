"""vLLM's engine options and their types, read from its source files: importing vLLM takes seconds, and reading 50 ms.

`EngineArgs` in `vllm/engine/arg_utils.py` declares each option with its type. Options that are a configuration of their
own (`compilation_config`) and choices are looked up in the modules that it imports them from. What is not understood is
not checked: vLLM itself validates everything when the model is loaded. A test compares the names with the imported
class.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

ARGUMENTS = "vllm.engine.arg_utils"
ENGINE_CLASSES = ("EngineArgs", "AsyncEngineArgs")
CONFIG_OF = {"speculative_config": "SpeculativeConfig"}
"""Options that are declared as a dict, and the class of `vllm.config` that vLLM makes of it."""
MAX_IMPORTS = 4
"""Modules between a name and its definition."""

_SIMPLE: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "dict": (dict,),
    "list": (list, tuple),
    "set": (list, tuple, set),
}
_WORDS = {
    "int": "a whole number such as 4",
    "float": "a number such as 0.5",
    "bool": "true or false",
    "str": "text",
    "dict": "a mapping such as {key: value}",
    "list": "a list such as [a, b]",
    "set": "a list such as [a, b]",
}


@dataclass(frozen=True, slots=True)
class _Module:
    """What a module defines and imports at its top, by name."""

    definitions: Mapping[str, ast.ClassDef | ast.Assign]
    imports: Mapping[str, str]


def faults_of(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The path below `engine:` and the sentence for each option that vLLM does not have, or not with such a value.

    Nothing where vLLM is not installed, or declares its options in another way.
    """
    module = _module(ARGUMENTS)
    known = {name: kind for each in ENGINE_CLASSES for name, kind in (_fields(module, each) or {}).items()}
    if module is None or "model" not in known:
        return
    for given, value in options.items():
        name = given.replace("-", "_")
        if name not in known or name.startswith("_"):
            yield given, _unknown(name, [each for each in known if not each.startswith("_")], "vLLM's engine")
            continue
        if value is not None:  # which vLLM takes for many options that do not declare it
            yield from _value_faults(given, value, known[name], module)
        config = CONFIG_OF.get(name) or next(_names(known[name]), "")
        if isinstance(value, dict) and (fields := _config_fields(config, module)):
            for key in value.keys() - fields:
                yield f"{given}.{key}", _unknown(str(key), sorted(fields), config)


def _unknown(name: str, known: list[str], owner: str) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"is no option of {owner}" + (f"; did you mean {near[0]}?" if near else "; leave it out")


def _value_faults(given: str, value: Any, annotation: ast.expr, module: _Module) -> Iterator[tuple[str, str]]:
    """The fault of a value that is of none of the declared types, if all of them are simple."""
    expected: list[str] = []
    for member in _members(annotation):
        name = member.id if isinstance(member, ast.Name) else ""
        if isinstance(member, ast.Subscript) and isinstance(member.value, ast.Name):
            name = member.value.id
        if isinstance(member, ast.Constant) and member.value is None:
            continue
        if name in _SIMPLE:
            if isinstance(value, _SIMPLE[name]) and (not isinstance(value, bool) or name == "bool"):
                return
            expected.append(_WORDS[name])
        elif (choices := _choices(member, module)) is not None:
            if any(value == choice and type(value) is type(choice) for choice in choices):
                return
            expected.append(f"one of {', '.join(map(str, choices))}")
        else:
            return
    found = str(value).lower() if isinstance(value, bool) else repr(value)
    yield given, f"must be {' or '.join(expected)}" + (f", not {found}" if len(found) <= 60 else "")


def _members(annotation: ast.expr) -> Iterator[ast.expr]:
    """The members of a union; of a type in quotes too."""
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        yield from _members(annotation.left)
        yield from _members(annotation.right)
    elif isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        yield from _members(ast.parse(annotation.value, mode="eval").body)
    else:
        yield annotation


def _names(annotation: ast.expr) -> Iterator[str]:
    return (each.id for each in _members(annotation) if isinstance(each, ast.Name) and each.id not in _SIMPLE)


def _choices(member: ast.expr, module: _Module | None) -> list[Any] | None:
    """The values of a `Literal`, or of a name for one; None for another type, or one that cannot be read."""
    if isinstance(member, ast.Name):
        found = _definition(member.id, module)
        return _choices(found[0].value, found[1]) if found and isinstance(found[0], ast.Assign) else None
    if not (isinstance(member, ast.Subscript) and isinstance(member.value, ast.Name) and member.value.id == "Literal"):
        return None
    values: list[Any] = []
    for item in member.slice.elts if isinstance(member.slice, ast.Tuple) else [member.slice]:
        if isinstance(item, ast.Constant):
            values.append(item.value)
        elif (inner := _choices(item, module)) is not None:
            values += inner
        else:
            return None
    return values


def _config_fields(name: str, module: _Module) -> set[str]:
    """The fields of a configuration class of vLLM without base classes; none if it cannot be read."""
    found = _definition(name, module) or _definition(name, _module("vllm.config"))
    if found is None or not isinstance(found[0], ast.ClassDef) or found[0].bases:
        return set()
    return {each for each in _annotated(found[0]) if not each.startswith("_")}


def _fields(module: _Module | None, class_name: str) -> dict[str, ast.expr] | None:
    found = _definition(class_name, module)
    return _annotated(found[0]) if found and isinstance(found[0], ast.ClassDef) else None


def _annotated(declared: ast.ClassDef) -> dict[str, ast.expr]:
    return {
        each.target.id: each.annotation
        for each in declared.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }


def _definition(name: str, module: _Module | None) -> tuple[ast.ClassDef | ast.Assign, _Module] | None:
    """The class or the assignment of that name, in this module or where it is imported from."""
    for _ in range(MAX_IMPORTS):
        if module is None:
            return None
        if name in module.definitions:
            return module.definitions[name], module
        module = _module(module.imports.get(name, ""))
    return None


@lru_cache(maxsize=64)
def _module(name: str) -> _Module | None:
    """A module of vLLM, which is read and not imported; None if it cannot be found or parsed."""
    package, *rest = name.split(".")
    if package != "vllm":
        return None
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations)), *rest)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None
    definitions: dict[str, ast.ClassDef | ast.Assign] = {}
    imports: dict[str, str] = {}
    for node in _top(tree.body):
        if isinstance(node, ast.ClassDef):
            definitions[node.name] = node
        elif isinstance(node, ast.Assign):
            definitions |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            imports |= {alias.asname or alias.name: node.module or "" for alias in node.names}
    return _Module(definitions, imports)


def _top(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, those under `if TYPE_CHECKING` among them."""
    for node in body:
        if isinstance(node, ast.If):
            yield from _top(node.body)
            yield from _top(node.orelse)
        else:
            yield node
