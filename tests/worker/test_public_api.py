"""`rbee_serve.worker`, the package that authors import from."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import rbee_serve.worker as kit

ROOT = Path(__file__).resolve().parents[2]
CODE = "import sys; {}; print(sorted({{'numpy', 'ray', 'torch', 'transformers', 'vllm'}} & set(sys.modules)))"


def typed_names() -> dict[str, str]:
    """The names of the imports for type checkers, each with where it comes from, as `module.attribute`."""
    [block] = [node for node in ast.parse(inspect.getsource(kit)).body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: f"{node.module}.{alias.name}" for node in imports for alias in node.names}


def test_type_checkers_and_the_interpreter_find_the_same_objects() -> None:
    typed = typed_names()
    assert set(typed) == set(kit.__all__)
    for name, target in typed.items():
        module, _, attribute = target.rpartition(".")
        assert getattr(kit, name) is getattr(importlib.import_module(module), attribute)


def test_the_names_are_sorted_and_shown_by_dir() -> None:
    assert kit.__all__ == sorted(kit.__all__)
    assert set(kit.__all__) <= set(dir(kit))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"'rbee_serve\.worker' has no attribute 'Nothing'"):
        _ = kit.Nothing


@pytest.mark.parametrize(
    "statement", ["import rbee_serve.worker", "from rbee_serve.worker import *", "import rbee_serve.testing"]
)
def test_the_kit_imports_no_model_library_and_no_ray(statement: str) -> None:
    done = subprocess.run([sys.executable, "-c", CODE.format(statement)], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


@pytest.mark.parametrize("module", sorted({target.rpartition(".")[0] for target in typed_names().values()}))
def test_each_module_can_be_the_first_import_of_a_program(module: str) -> None:
    """None of the library is loaded before, so an import cycle would show."""
    loaded = {key: value for key, value in sys.modules.items() if key.partition(".")[0] == "rbee_serve"}
    try:
        for key in loaded:
            del sys.modules[key]
        importlib.import_module(module)
    finally:
        for key in [key for key in sys.modules if key.partition(".")[0] == "rbee_serve"]:
            del sys.modules[key]
        sys.modules.update(loaded)
