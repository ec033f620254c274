"""`rbee-serve new NAME`, and what it writes: run in processes of their own, as an author does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rbee_serve.errors import ConfigurationError
from rbee_serve.scaffold.new_worker import new_worker
from rbee_serve.supervisor.cli import main

ROOT = Path(__file__).resolve().parents[2]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_a_new_package_passes_its_test_and_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "word_counter"]) == 0
    assert "cd word_counter && pip install -e ." in capsys.readouterr().out
    folder = tmp_path / "word_counter"
    tested = run(folder, "pytest", "-q", "-p", "no:cacheprovider")
    assert "1 passed" in tested.stdout, tested.stdout + tested.stderr
    checked = run(folder, "rbee_serve.supervisor", "check", "serve_config.yaml")
    assert checked.returncode == 0, checked.stderr
    assert "word-counter-0 (word_counter.worker:SPEC)" in checked.stdout
    linted = run(folder, "ruff", "check", "--isolated", "--line-length", "120", "--select", "E,F,UP,B", ".")
    assert linted.returncode == 0, linted.stdout


def test_a_wrong_option_in_a_new_package_is_found_before_anything_starts(tmp_path: Path) -> None:
    folder = new_worker("word_counter", tmp_path)
    config = folder / "serve_config.yaml"
    config.write_text(config.read_text().replace("upper_case: false", "uper_case: false"))
    checked = run(folder, "rbee_serve.supervisor", "check", "serve_config.yaml")
    assert checked.returncode == 2
    assert "engine.uper_case: unknown key" in checked.stderr


@pytest.mark.parametrize("name", ["", "Word", "1st", "word-counter", "a b", "class", "../up", "a.b", "x" * 31, "é"])
def test_a_name_that_cannot_be_a_module_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be the name of a module"):
        new_worker(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["json", "rbee_serve", "deployments"])
def test_the_name_of_an_installed_module_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"already a module {name}"):
        new_worker(name, tmp_path)


def test_an_existing_folder_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "word_counter").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["new", "word_counter"]) == 2
    assert "word_counter exists; choose another name, or remove it" in capsys.readouterr().err
    assert not list((tmp_path / "word_counter").iterdir())


def test_a_folder_that_cannot_be_written_is_an_error_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        new_worker("word_counter", tmp_path / "file")
