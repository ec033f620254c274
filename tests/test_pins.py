"""The pins of `requirements/` have what `pyproject.toml` and the models need."""

from __future__ import annotations

import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.install import REQUIREMENTS, ROOT, read_pins

BUILDS = {"cpu": "constraints.txt", "gpu": "constraints-gpu.txt"}
OVERRIDES = {"cpu": "overrides.txt", "gpu": "overrides-gpu.txt"}


@pytest.mark.parametrize("build", BUILDS)
def test_every_requirement_of_a_build_has_a_pin_that_satisfies_it(build: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = read_pins(REQUIREMENTS / BUILDS[build])
    extras = project["optional-dependencies"]
    lines = [line for extra in extras if extra not in BUILDS or extra == build for line in extras[extra]]
    for line in [*project["dependencies"], *lines]:
        required = Requirement(line)
        assert required.specifier.contains(pins[canonicalize_name(required.name)]), line


@pytest.mark.parametrize("build", BUILDS)
def test_what_is_left_out_on_purpose_has_no_pin(build: str) -> None:
    lines = (REQUIREMENTS / OVERRIDES[build]).read_text().splitlines()
    left_out = {line.partition(";")[0].strip() for line in lines if line and not line.startswith("#")}
    assert left_out
    assert not left_out & read_pins(REQUIREMENTS / BUILDS[build]).keys()


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
def test_a_gpu_machine_has_what_the_processors_of_transformers_cannot_do_without() -> None:
    """vLLM makes a model's processor at its start; SmolVLM's raises without `num2words`."""
    spec = find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    files = (Path(spec.origin).parent / "models").glob("*/processing_*.py")
    needed = {name for file in files for name in re.findall(r"Package `([\w-]+)` is required", file.read_text())}
    assert "num2words" in needed
    assert needed <= read_pins(REQUIREMENTS / BUILDS["gpu"]).keys()
