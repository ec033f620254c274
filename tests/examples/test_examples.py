"""The examples are small, keep the contract and do what they show."""

from __future__ import annotations

import ast
import io
import sys
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rbee_serve.errors import ConfigurationError
from rbee_serve.testing import check_worker_type
from rbee_serve.worker import Device, LoadContext, Output, Watchdog, WorkerConfig, WorkerSpec
from rbee_serve.worker.registry import load_spec

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MAX_LINES = {"language_identifier": 21, "image_worker": 60}
"""Lines without imports that are neither blank, comment nor docstring, as ruff formats them."""


@pytest.fixture(autouse=True)
def examples_are_importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(EXAMPLES)
    yield
    for name in MAX_LINES:
        sys.modules.pop(name, None)


def module(name: str) -> ModuleType:
    load_spec(f"{name}:SPEC")
    return sys.modules[name]


async def outputs(spec: WorkerSpec[Any], request: Any, **engine: Any) -> list[Any]:
    worker = WorkerConfig(id="w", type="w", engine=engine)
    backend = spec.load(LoadContext(worker, Device("cpu"), lambda progress: None, Watchdog(20)))
    async with aclosing(backend.execute(request)) as events:  # type: ignore[type-var]
        found = [event.value async for event in events if isinstance(event, Output)]
    backend.close()
    return found


def code_lines(path: Path) -> int:
    text = path.read_text()
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())) | ast.Import() | ast.ImportFrom():
                left_out |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = {number for number, line in enumerate(text.splitlines(), 1) if line.strip() and line.strip()[0] != "#"}
    return len(lines - left_out)


@pytest.mark.parametrize("name", MAX_LINES)
def test_an_example_is_as_short_as_promised(name: str) -> None:
    assert code_lines(EXAMPLES / f"{name}.py") <= MAX_LINES[name]


@pytest.mark.parametrize("name", MAX_LINES)
def test_an_example_keeps_the_contract(name: str) -> None:
    check_worker_type(module(name).SPEC)


async def test_the_language_of_each_line_is_identified() -> None:
    example = module("language_identifier")
    text = "The cat and the dog\nder Hund und die Katze\nle chat et les chiens\nel gato y los perros"
    found = await outputs(example.SPEC, example.LanguageRequest(text=text))
    assert [(output.language, output.matches, output.i) for output in found] == [
        ("en", 3, 0), ("de", 3, 1), ("fr", 3, 2), ("es", 3, 3),
    ]  # fmt: skip


async def test_the_colours_of_an_image_are_found_cell_by_cell() -> None:
    image = pytest.importorskip("PIL.Image")
    example = module("image_worker")
    picture = image.new("RGB", (8, 8), "white")
    picture.paste("red", (0, 0, 4, 4))
    file = io.BytesIO()
    picture.save(file, "PNG")
    palette = {"red": [255, 0, 0], "white": [255, 255, 255]}
    found = await outputs(example.SPEC, example.ColorRequest(image=file.getvalue(), grid=2), palette=palette)
    assert [output.labels[0].label for output in found] == ["red", "white", "white", "white"]
    assert found[0].labels[0].score > 0.7


def test_a_wrong_option_of_the_image_worker_is_refused_by_its_path() -> None:
    spec = module("image_worker").SPEC
    with pytest.raises(ConfigurationError, match=r"engine\.batch: unknown key"):
        spec.check(WorkerConfig(id="w", type="w", engine={"batch": 3}))
