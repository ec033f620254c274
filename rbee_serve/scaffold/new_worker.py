"""`rbee-serve new NAME`: a package with a worker type, its test and a configuration, to start from.

NAME/pyproject.toml   NAME/serve_config.yaml   NAME/NAME/worker.py   NAME/tests/test_worker.py
"""

from __future__ import annotations

import importlib.util
import keyword
import re
from importlib import resources
from pathlib import Path
from string import Template

from rbee_serve.errors import ConfigurationError

MAX_NAME = 30
"""Characters of a name: it becomes a module, a package and the id of a worker."""


def new_worker(name: str, parent: Path) -> Path:
    """Write the package `name` into the folder `parent`; returns its folder.

    Raises `ConfigurationError` for a name that cannot be a module, a name that an installed module has, and a path that
    exists.
    """
    _check_name(name)
    folder = parent / name
    if folder.exists():
        raise ConfigurationError(f"{folder} exists; choose another name, or remove it")
    prefix = "".join(part.capitalize() for part in name.split("_"))
    values = {"name": name, "prefix": prefix, "worker_id": f"{name.replace('_', '-').rstrip('-')}-0"}
    files = {
        "pyproject.toml": "pyproject.toml",
        "serve_config.yaml": "serve_config.yaml",
        "worker.py": f"{name}/worker.py",
        "test_worker.py": "tests/test_worker.py",
    }
    templates = resources.files("rbee_serve.scaffold") / "template"
    try:
        for template, target in files.items():
            path = folder / target
            path.parent.mkdir(parents=True, exist_ok=True)
            text = (templates / f"{template}.txt").read_text(encoding="utf-8")
            path.write_text(Template(text).substitute(values), encoding="utf-8")
        (folder / name / "__init__.py").touch()
        (folder / name / "py.typed").touch()
    except OSError as exc:
        raise ConfigurationError(f"{folder} cannot be written: {exc.strerror}") from exc
    return folder


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or len(name) > MAX_NAME or keyword.iskeyword(name):
        raise ConfigurationError(
            f"{name!r} cannot be the name of a module; use lower-case letters, digits and _, such as word_counter"
        )
    if importlib.util.find_spec(name) is not None:
        raise ConfigurationError(f"there is already a module {name} in this environment; choose another name")
