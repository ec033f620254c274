"""Names that CONTRIBUTING.md replaces by the field's terms are not defined again where they stood."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROW = re.compile(r"^\| (?P<terms>[^|]+) \| (?P<names>[^|]+) \| (?P<folders>[^|]+) \|$", re.MULTILINE)


def replaced() -> list[tuple[str, str, str]]:
    """Each old name, a folder or file where it must not be defined, and the terms to use instead."""
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## Words we use")[2].partition("\n## ")[0]
    quoted = re.compile(r"`([^`]+)`")
    return [
        (name, place, row["terms"])
        for row in ROW.finditer(section)
        for name in quoted.findall(row["names"])
        for place in quoted.findall(row["folders"])
    ]


@cache
def defined_in(path: Path) -> list[tuple[str, int]]:
    """The definitions of a file."""
    return list(definitions(path.read_text()))


def definitions(source: str) -> Iterator[tuple[str, int]]:
    """Classes, functions, parameters, variables and fields that a module defines, each with its line."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name, node.lineno
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node.lineno


def found(name: str, place: str) -> Iterator[str]:
    """Where `name`, or the same as a private name, is defined below `place`."""
    start = ROOT / place
    for path in [start] if start.is_file() else sorted(start.rglob("*.py")):
        for defined, line in defined_in(path):
            if defined.removeprefix("_") == name:
                yield f"{path.relative_to(ROOT)}:{line} defines {defined}"


def test_the_table_is_read() -> None:
    assert ("Roster", "rbee_serve/hub/") in {(name, place) for name, place, _ in replaced()}
    assert all((ROOT / place).exists() for _, place, _ in replaced())


@pytest.mark.parametrize(
    ("name", "place", "terms"), replaced(), ids=lambda value: value if value.isidentifier() else ""
)
def test_a_replaced_name_is_not_defined_again(name: str, place: str, terms: str) -> None:
    assert not (lines := list(found(name, place))), f"use {terms}:\n" + "\n".join(lines)


def test_a_definition_of_each_kind_is_seen() -> None:
    source = "class A: b: int = 1\ndef c(d, *, e): f = g = 2\nasync def h(): self.i = 3\nfor j in (): pass\n"
    assert {name for name, _ in definitions(source)} == set("ABCDEFGHIJ".lower()) - {"a"} | {"A"}
