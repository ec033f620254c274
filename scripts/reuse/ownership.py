"""Which modules a worker type owns, read from what imports what."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

COMMON = frozenset({"deployments", "deployments.app", "deployments.registry"})
"""Modules of `deployments` that know every type and belong to none."""


def owned_modules(root: Path, worker_types: Mapping[str, str]) -> dict[str, dict[str, Path]]:
    """For each worker type of the registry its modules in `deployments`, by name, with their files.

    They are the one that the registry names and what that imports, directly or not, a module that is named in a string
    as well, as engines and decoders are. A module that no type imports, such as a plugin of an engine, belongs to the
    types whose modules it imports, and so does all else that it imports. What a family of types has in common belongs
    to each of them.
    """
    files = _modules(root)
    imports = {module: _imported(path, files) for module, path in files.items()}
    owned = {name: _reachable([path.partition(":")[0]], imports) for name, path in worker_types.items()}
    unclaimed = files.keys() - set().union(*owned.values())
    for modules in owned.values():
        plugins = [module for module in unclaimed if not modules.isdisjoint(_reachable([module], imports))]
        modules |= _reachable(plugins, imports)
    return {name: {module: files[module] for module in sorted(modules)} for name, modules in owned.items()}


def _modules(root: Path) -> dict[str, Path]:
    found = {}
    for path in (root / "deployments").rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {module: path for module, path in found.items() if module not in COMMON}


def _imported(path: Path, known: Mapping[str, Path]) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value.partition(":")[0])
    return names & known.keys()


def _reachable(start: Iterable[str], imports: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(start)
    while waiting:
        if (module := waiting.pop()) not in found and module in imports:
            found.add(module)
            waiting += imports[module]
    return found
