"""The two tiers of tests, on small test files of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiers import MAKE_TEST, SKIPS, listed

FILE = """
import pytest

@pytest.mark.ray
def test_expensive(): ...

def test_cheap(): ...

def test_skipped(): pytest.skip("the reason")
"""
MODULE = 'import pytest\npytest.importorskip("no_such_module")\n'


def run(folder: Path, content: str, *options: str, fail_on_skips: bool = False) -> subprocess.CompletedProcess[str]:
    """pytest with the plugin on one file."""
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = ray: starts Ray\n")
    (folder / "conftest.py").write_text(
        "from tests.tiers import Tiers\n"
        f"def pytest_configure(config): config.pluginmanager.register(Tiers({fail_on_skips}))\n"
    )
    (folder / "test_file.py").write_text(content)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", *options]
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run([*command, str(folder)], cwd=folder, env=environment, capture_output=True, text=True)


def test_an_expensive_test_is_full_unless_it_is_listed(tmp_path: Path) -> None:
    result = run(tmp_path, FILE, "-m", "not full")
    assert result.returncode == 0, result.stdout
    assert "1 passed, 1 skipped, 1 deselected" in result.stdout


@pytest.mark.parametrize("content", [FILE, MODULE], ids=["test", "module"])
def test_a_skip_that_is_not_listed_fails_where_skips_are_failures(tmp_path: Path, content: str) -> None:
    assert run(tmp_path, content).returncode in (0, 5)  # 5: no test was collected
    result = run(tmp_path, content, fail_on_skips=True)
    assert result.returncode in (1, 2)  # 2: a module could not be collected
    assert "list the skip with its reason in SKIPS of tests/tiers.py" in result.stdout


def test_patterns_match_below_the_folder_of_the_tests() -> None:
    assert listed("tests/served/test_handles.py::test_x", MAKE_TEST)
    assert not listed("tests/served/test_two_nodes.py::test_x", MAKE_TEST)
    assert listed("tests/torch_runtime/test_cuda_graphs.py::test_x", SKIPS)
