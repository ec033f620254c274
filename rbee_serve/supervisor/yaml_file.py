"""A YAML file as data, with the line number of every key for error messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rbee_serve.errors import ConfigurationError


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
        text = path.read_text(encoding="utf-8")
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
        raise ConfigurationError(f"{path}:{line}: is not valid YAML: {exc.problem or exc.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigurationError(f"{path}: is not valid YAML") from None
    if root is None or not isinstance(data, dict):
        raise ConfigurationError(f"{path}: holds no mapping; it must at least have the key applications")
    lines: dict[str, int] = {}
    for where, line, duplicate in _positions(root, ""):
        if duplicate:
            raise ConfigurationError(f"{path}:{line}: {where}: the key is given twice")
        lines[where] = line
    return YamlFile(path, data, lines)


def _positions(node: yaml.Node, where: str) -> Iterator[tuple[str, int, bool]]:
    """Path and line of every key and item below a node, and whether the key is a duplicate."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            path = f"{where}.{key.value}".removeprefix(".")
            yield path, key.start_mark.line + 1, path in seen
            seen.add(path)
            yield from _positions(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            path = f"{where}[{index}]"
            yield path, value.start_mark.line + 1, False
            yield from _positions(value, path)
