"""vLLM's options as its source files declare them, before anything starts."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deployments.vllm_runtime import option_schema
from deployments.vllm_runtime.engine_options import check_engine
from deployments.vllm_runtime.option_schema import faults_of
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError

ARGUMENTS = """
from typing import Literal
from vllm.config import Depth, TreeConfig

class EngineArgs:
    model: str = "m"
    max_model_len: int = 0
    share: float | None = None
    eager: bool = False
    places: "list[str] | None" = None
    depth: Depth = "auto"
    tree_config: TreeConfig | None = None
    other: Unknown = None
    _private: int = 0

class AsyncEngineArgs(EngineArgs):
    log: Literal["all", "none"] = "none"
"""
HINT = "did you mean branches?"
CONFIG = """
Level = Literal["low", "high"]
Depth = Literal["auto", Level]

class TreeConfig:
    branches: int = 2
"""


@pytest.fixture
def small_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `vllm` with a handful of options; its folder."""
    folder = tmp_path / "vllm"
    for path, text in {
        "__init__.py": "raise RuntimeError",
        "engine/arg_utils.py": ARGUMENTS,
        "config.py": CONFIG,
    }.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(option_schema, "_module", option_schema._module.__wrapped__)
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)
    return folder


@pytest.mark.parametrize(
    ("options", "faults"),
    [
        ({"max_model_len": 5, "share": 1, "eager": True, "places": ["a"], "depth": "low", "log": "all"}, []),
        ({"max-model-len": None, "share": None, "tree_config": {"branches": 3}, "other": object()}, []),
        ({"max_modle_len": 5}, [("max_modle_len", "is no option of vLLM's engine; did you mean max_model_len?")]),
        ({"max-modle-len": 5}, [("max-modle-len", "is no option of vLLM's engine; did you mean max_model_len?")]),
        ({"zzzzz": 5}, [("zzzzz", "is no option of vLLM's engine; leave it out")]),
        ({"_private": 5}, [("_private", "is no option of vLLM's engine; leave it out")]),
        ({"max_model_len": "32k"}, [("max_model_len", "must be a whole number such as 4, not '32k'")]),
        ({"max_model_len": True}, [("max_model_len", "must be a whole number such as 4, not true")]),
        ({"share": "half"}, [("share", "must be a number such as 0.5, not 'half'")]),
        ({"eager": "yes"}, [("eager", "must be true or false, not 'yes'")]),
        ({"places": "a"}, [("places", "must be a list such as [a, b], not 'a'")]),
        ({"depth": "deep"}, [("depth", "must be one of auto, low, high, not 'deep'")]),
        (
            {"tree_config": {"branch": 3}},
            [("tree_config.branch", "is no option of TreeConfig; did you mean branches?")],
        ),
    ],
)
def test_an_option_is_compared_with_its_declaration(
    small_vllm: Path, options: dict[str, Any], faults: list[tuple[str, str]]
) -> None:
    assert list(faults_of(options)) == faults


@pytest.mark.parametrize("text", ["", "class EngineArgs(", "class EngineArgs: pass", "EngineArgs = make()"])
def test_options_that_are_declared_in_another_way_are_left_to_vllm(small_vllm: Path, text: str) -> None:
    (small_vllm / "engine/arg_utils.py").write_text(text)
    assert list(faults_of({"zzzzz": 5})) == []


def test_without_vllm_nothing_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(option_schema, "_module", lambda name: None)
    assert list(faults_of({"zzzzz": 5})) == []


installed = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM's source files")


@installed
def test_the_installed_vllm_is_compared_and_not_imported() -> None:
    program = (
        "import sys\n"
        "from deployments.vllm_runtime.option_schema import faults_of\n"
        "assert [path for path, _ in faults_of({'max_modle_len': 5, 'dtype': 'float64', 'speculative_config': "
        "{'method': 'ngram', 'num_speculative_token': 3}})]\n"
        "assert not {'vllm', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@installed
def test_a_misspelt_option_is_refused_with_its_path() -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_engine(WorkerConfig(id="llm-0", type="llm", engine={"max_modle_len": 5, "lora-modules": {}}))
    assert str(caught.value) == "engine.max_modle_len: is no option of vLLM's engine; did you mean max_model_len?"


@pytest.mark.vllm  # only imported, which takes as long as a model
def test_the_names_are_those_of_the_imported_class() -> None:
    program = (
        "import json\n"
        "from vllm import AsyncEngineArgs\n"
        "import vllm.config as config\n"
        "from dataclasses import fields\n"
        "classes = [AsyncEngineArgs, config.CompilationConfig, config.SpeculativeConfig, config.KVTransferConfig]\n"
        "print(json.dumps({each.__name__: [field.name for field in fields(each)] for each in classes}))"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    imported = json.loads(output.splitlines()[-1])
    options = imported.pop("AsyncEngineArgs")
    wrong = [path for path, sentence in faults_of(dict.fromkeys(options)) if "no option" in sentence]
    assert all(path.startswith("_") for path in wrong), wrong
    for option, name in {
        "compilation_config": "CompilationConfig",
        "speculative_config": "SpeculativeConfig",
        "kv_transfer_config": "KVTransferConfig",
    }.items():
        known = [field for field in imported[name] if not field.startswith("_")]
        assert list(faults_of({option: dict.fromkeys(known)})) == []
        assert list(faults_of({option: {"zzzzz": 1}})) == [(f"{option}.zzzzz", f"is no option of {name}; leave it out")]
