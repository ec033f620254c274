"""vLLM's private names: those in use are listed, and those that are listed exist."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from deployments.vllm_runtime.private_api import (
    ALL_NAMES,
    FEATURES,
    SHM_WAKEUP,
    PrivateName,
    fault,
    fits,
)

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = sorted([*(ROOT / "deployments").rglob("*.py"), *(ROOT / "rbee_serve").rglob("*.py")])
EXPORTED = {"AsyncEngineArgs", "PoolingParams", "SamplingParams"}
"""Names of `vllm.__all__` that are in use."""


@pytest.mark.vllm  # only imported, which takes as long as a model
def test_the_installed_vllm_has_every_private_name_and_fits_every_feature() -> None:
    import vllm

    assert {name.path: reason for name in ALL_NAMES if (reason := fault(name))} == {}
    fits.cache_clear()
    assert all(fits(feature) for feature in FEATURES)
    assert set(vllm.__all__) >= EXPORTED


def used_names(source: str) -> Iterator[str]:
    """Every `module.name` of vLLM that a source imports, or takes from an imported module."""
    tree = ast.parse(source)
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "vllm":
                    modules[alias.asname or alias.name] = alias.name
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in modules:
                yield f"{modules[name]}.{attribute}"
            case ast.Attribute(
                value=ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(module))]),
                attr=attribute,
            ) if module.split(".")[0] == "vllm":
                yield f"{module}.{attribute}"


def private_attributes(source: str) -> Iterator[str]:
    """Every `_name` that is taken from something else than `self`, `cls` or the module's own names."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                pass
            case ast.Attribute(attr=name) if name.startswith("_") and not name.startswith("__"):
                yield name


def test_the_source_uses_no_private_name_of_vllm_that_is_not_listed() -> None:
    listed = {f"{name.module}.{name.path.partition('.')[0]}" for name in ALL_NAMES}
    listed |= {f"vllm.{name}" for name in EXPORTED}
    found = {name for path in SOURCES for name in used_names(path.read_text())}
    assert found - listed == set()
    assert {"vllm.AsyncEngineArgs", "vllm.platforms.current_platform"} <= found
    assert f"{SHM_WAKEUP.names[0].module}.SpinCondition" in found


def test_modules_of_vllm_runtime_use_no_underscore_attribute_that_is_not_listed() -> None:
    listed = {name.path.rpartition(".")[2] for name in ALL_NAMES} | {"_exit"}  # os._exit
    found = {name for path in SOURCES if "vllm" in str(path) for name in private_attributes(path.read_text())}
    assert found - listed == set()
    assert "_apply_prompt_updates_via_text" in found


def test_names_are_found_in_every_form_of_import() -> None:
    source = """
import vllm.a.b as b
from vllm.c import d
b.e()
importlib.import_module("vllm.f").g
"""
    assert set(used_names(source)) == {"vllm.a.b.e", "vllm.c.d", "vllm.f.g"}


class Fields:
    """A class with an attribute of each kind."""

    annotated: int

    def __init__(self) -> None:
        self.assigned = 1

    def method(self, first: int, second: int = 2) -> None: ...


@pytest.mark.parametrize(
    ("path", "parameters", "reason"),
    [
        ("Fields.annotated", (), None),
        ("Fields.assigned", (), None),
        ("Fields.method", ("first",), None),
        ("Fields.method", ("second",), "does not take second"),
        ("Fields.annotated", ("first",), "does not take first"),
        ("Fields.other", (), "there is no fake.Fields.other"),
        ("Other.method", (), "there is no fake.Other"),
    ],
)
def test_a_probe_finds_attributes_fields_and_parameters(
    monkeypatch: pytest.MonkeyPatch, path: str, parameters: tuple[str, ...], reason: str | None
) -> None:
    monkeypatch.setitem(sys.modules, "fake", SimpleNamespace(Fields=Fields))
    found = fault(PrivateName("fake", path, "a test", parameters))
    assert (found is None) if reason is None else (found is not None and reason in found)
