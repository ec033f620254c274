"""The wheel in a clean environment, with the packages that it asks for and no others.

Building and installing take the package index, or what uv has of it in its cache.
"""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from scripts.install import REQUIREMENTS, ROOT, VENV, Command, settings_for_uv
from tests.supervisor.configurations import ECHO

pytestmark = pytest.mark.full

IMPORT_EVERYTHING = """
import importlib, pkgutil
import rbee_serve, deployments
for package in (rbee_serve, deployments):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
print(rbee_serve.__file__)
"""


def run(*command: str | Path, cwd: Path, uv: bool = False) -> str:
    """The output of a command, without this checkout in its path."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    if uv:
        environment.update(settings_for_uv())
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(VENV / "bin" / "uv", "build", "--wheel", "--out-dir", folder, ROOT, cwd=folder, uv=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_has_the_packages_their_data_and_the_licence_and_no_test(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"rbee_serve", "deployments", "demo_models", next(top for top in tops if top.endswith(".dist-info"))}
    assert "rbee_serve/py.typed" in names
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
    tracked = subprocess.run(
        ["git", "ls-files", "rbee_serve", "deployments", "demo_models"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(tracked.stdout.split()) <= names
    assert not [name for name in names if "/test_" in name and "/template/" not in name]


def test_the_wheel_works_in_a_clean_environment_with_its_own_dependencies_only(wheel: Path, tmp_path: Path) -> None:
    venv, uv = tmp_path / "venv", VENV / "bin" / "uv"
    run(uv, "venv", "--python", VENV / "bin" / "python", venv, cwd=tmp_path, uv=True)
    pins: Command = ["--constraint", REQUIREMENTS / "constraints.txt", "--override", REQUIREMENTS / "overrides.txt"]
    run(uv, "pip", "install", "--python", venv / "bin" / "python", *pins, wheel, cwd=tmp_path, uv=True)

    command = venv / "bin" / "rbee-serve"
    assert run(command, "--version", cwd=tmp_path) == f"rbee-serve {wheel.name.split('-')[1]}\n"
    (tmp_path / "serve_config.yaml").write_text(ECHO)
    assert "the configuration is valid; it serves echo-0 (echo)" in run(
        command, "check", "serve_config.yaml", cwd=tmp_path
    )
    assert "word_counter/ is written" in run(command, "new", "word_counter", cwd=tmp_path)
    where = run(venv / "bin" / "python", "-W", "error::SyntaxWarning", "-c", IMPORT_EVERYTHING, cwd=tmp_path)
    assert where.startswith(str(venv))
