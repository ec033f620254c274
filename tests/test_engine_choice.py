"""`engine.name` selects an engine module, and every engine module has the same shape."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deployments.audio import generate, transcribe
from deployments.embedding import embedding_worker
from deployments.engine_choice import EngineOptions, choose_engine
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError

TABLES = {
    "transcribe": transcribe.ENGINES,
    "generate": generate.ENGINES,
    "embedding": embedding_worker.ENGINES,
}
MODULES = sorted(module for table in TABLES.values() for module in table.values())
WORKERS_ONLY = (
    "rbee_serve.events",
    "rbee_serve.outputs",
    "rbee_serve.request.InferenceRequest",
    "rbee_serve.errors.InvalidRequest",
    "rbee_serve.worker.spec.WorkerSpec",
)
"""Names that belong to worker modules: requests, events and specs."""


def worker(engine: dict[str, Any]) -> WorkerConfig:
    return WorkerConfig(id="a", type="t", engine=engine)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_first_engine_is_the_default(table: dict[str, str]) -> None:
    module, options = choose_engine(table, worker({}))
    assert module.__name__ == next(iter(table.values()))
    assert isinstance(options, module.Options)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (
            {"name": "transformer"},
            "engine.name: 'transformer' is unknown; known are hibari, transformers; did you mean transformers?",
        ),
        ({"name": "x"}, "engine.name: 'x' is unknown; known are hibari, transformers"),
        ({"name": None}, "engine.name: None is unknown; known are hibari, transformers"),
        ({"name": ["hibari"]}, "engine.name: ['hibari'] is unknown; known are hibari, transformers"),
        ({"voice": "heart", "voices": []}, "engine.voices: must not be empty"),
        ({"voice": "heart", "voices": []}, "engine.voice: unknown key"),
    ],
)
def test_an_invalid_engine_is_refused_by_key(engine: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        choose_engine(generate.ENGINES, worker(engine))
    assert message in str(caught.value)


def test_only_the_chosen_engine_module_is_imported() -> None:
    program = """
import sys
from deployments.audio import generate
from deployments.engine_choice import choose_engine
from rbee_serve.config import WorkerConfig
before = set(sys.modules)
choose_engine(generate.ENGINES, WorkerConfig(id="a", type="t", engine={}))
print(*sorted(name for name in set(sys.modules) - before if name.startswith("deployments") or name == "numpy"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.split(), done.returncode) == (["deployments.audio.hibari_engine"], 0), done.stderr


@pytest.mark.parametrize("name", MODULES)
def test_an_engine_module_has_options_with_a_sentence_for_each_field_a_check_a_load_and_its_needs(name: str) -> None:
    module = importlib.import_module(name)
    assert issubclass(module.Options, EngineOptions)
    assert module.Options()
    assert [field for field, info in module.Options.model_fields.items() if not info.description] == []
    assert callable(module.check)
    assert callable(module.load)
    assert callable(module.memory_needs)


@pytest.mark.parametrize("name", [*MODULES, "deployments.torch_runtime.cross_encoder"])
def test_an_engine_module_knows_no_request_no_event_and_no_worker_spec(name: str) -> None:
    path = importlib.import_module(name).__file__
    assert path is not None
    imported = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(Path(path).read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert [found for found in imported if found.startswith(WORKERS_ONLY)] == []
