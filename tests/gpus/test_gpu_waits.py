"""Every engine waits for its GPU before it looks at the GPU's memory, and every worker type of ours says so."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.registry import WORKER_TYPES
from rbee_serve.worker.registry import load_spec

DEPLOYMENTS = Path(__file__).resolve().parents[2] / "deployments"
USES = frozenset({"require_memory", "_require_memory", "torch_device"})
"""Calls from which on a load depends on the memory of its GPU."""


def loads() -> Iterator[tuple[str, list[str]]]:
    """Each function that loads a model: its place, and the names of what it calls, in their order."""
    for path in sorted(DEPLOYMENTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any(argument.arg == "context" for argument in node.args.args):
                found = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
                found.sort(key=lambda name: (name.lineno, name.col_offset))
                names = [name.attr if isinstance(name, ast.Attribute) else getattr(name, "id", "") for name in found]
                if USES.intersection(names):
                    yield f"{path.relative_to(DEPLOYMENTS)}:{node.name}", names


LOADS = dict(loads())


def test_the_loads_are_found() -> None:
    assert len(LOADS) >= 7


@pytest.mark.parametrize("place", LOADS)
def test_a_load_waits_for_its_gpu_before_it_depends_on_its_memory(place: str) -> None:
    names = LOADS[place]
    assert "wait_for_gpu" in names
    assert names.index("wait_for_gpu") < min(names.index(name) for name in USES.intersection(names))


@pytest.mark.parametrize("name", [name for name in WORKER_TYPES if name != "echo"])
def test_the_worker_types_wait_themselves_so_that_downloads_need_not(name: str) -> None:
    assert load_spec(WORKER_TYPES[name]).waits_for_gpu
