"""A YAML file as data, with the line number of every key for error messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from rbee_serve.errors import ConfigurationError

MAX_POSITIONS = 100_000
"""Keys and items whose lines are recorded. References to anchors can multiply them without end."""


@dataclass(frozen=True, slots=True)
class YamlFile:
    """The content of the file, and the line of each path such as `applications[0].args`."""

    path: Path
    data: dict[str, Any]
    lines: dict[str, int]

    def error(self, where: str, sentence: str) -> ConfigurationError:
        """An error about the key at path `where`. A missing key has the line of its nearest parent."""
        return ConfigurationError(f"{self.path}:{self._line(where)}: {where}: {sentence}")

    def _line(self, where: str) -> int:
        while where and where not in self.lines:
            where = where[: max(where.rfind("."), where.rfind("["), 0)]
        return self.lines.get(where, 1)


def read_yaml(path: Path) -> YamlFile:
    """Read a YAML file whose top is a mapping.

    Raises `ConfigurationError` with the line on invalid YAML, on a duplicate key (of which YAML parsers silently take
    the last), and on a file that cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as exc:
        raise ConfigurationError(f"{path}: cannot be read: {exc.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: is not a text file") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = mark.line + 1 if mark else 1
        problem = exc.problem or exc.context or ""
        if "'\\t'" in problem:
            problem = "has a tab in its indentation; use blanks"
        raise ConfigurationError(f"{path}:{line}: is not valid YAML: {problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigurationError(f"{path}: is not valid YAML") from None
    if root is None or not isinstance(data, dict):
        found = "is empty" if root is None else "holds no mapping"
        raise ConfigurationError(f"{path}: {found}; it must at least have the key applications")
    lines: dict[str, int] = {}
    for where, line, fault in islice(_positions(root, "", ()), MAX_POSITIONS):
        if fault:
            raise ConfigurationError(f"{path}:{line}: {where}: {fault}")
        lines[where] = line
    return YamlFile(path, data, lines)


def _positions(node: yaml.Node, where: str, above: tuple[yaml.Node, ...]) -> Iterator[tuple[str, int, str]]:
    """Path and line of every key and item below a node, and the fault of one that is wrong; else an empty text."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            path = f"{where}.{key.value if isinstance(key, yaml.ScalarNode) else '?'}".removeprefix(".")
            line = key.start_mark.line + 1
            if path in seen:
                yield path, line, "the key is given twice"
            yield path, line, ""
            seen.add(path)
            yield from _within(value, path, line, (*above, node))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            path, line = f"{where}[{index}]", value.start_mark.line + 1
            yield path, line, ""
            yield from _within(value, path, line, (*above, node))


def _within(node: yaml.Node, where: str, line: int, above: tuple[yaml.Node, ...]) -> Iterator[tuple[str, int, str]]:
    if any(node is each for each in above):
        yield where, line, "refers to itself"
    else:
        yield from _positions(node, where, above)
