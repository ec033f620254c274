"""The notebooks, run from top to bottom against the application that the tests serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import Served
from tests.served.models import DEFAULT_WORKERS, LLM, serving

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"

pytestmark = [pytest.mark.ray]


def run(name: str, monkeypatch: pytest.MonkeyPatch, **environment: str) -> list[Any]:
    """The outputs of a notebook. An error in a cell fails the test."""
    for variable, value in {"PYDEVD_DISABLE_FILE_VALIDATION": "1", **environment}.items():
        monkeypatch.setenv(variable, value)
    notebook: Any = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    assert not any(cell.get("outputs") for cell in notebook.cells), f"clear the outputs of {name}.ipynb"
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": "."}}).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def text_of(outputs: list[Any]) -> str:
    return "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)


@serving(LLM)
def test_a_first_stream(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.wait_until_ready(["llm-0"])
    text = text_of(run("01_first_stream", monkeypatch, RBEE_SERVE_URL=served.url))
    assert "Started(job_id=" in text
    assert "max_tokens: must be at most 2048" in text
    assert "echo" in text


@serving(*DEFAULT_WORKERS)
def test_all_modalities(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = run("02_all_modalities", monkeypatch, RBEE_SERVE_URL=served.url)
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert kinds.count("image/png") == 6
    assert kinds.count("text/html") == 2
    text = text_of(outputs)
    assert "This is a seven." in text
    assert "A handwritten eight." in text
    assert "'label': 'seven'" in text


def test_add_a_worker_type(monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_of(run("03_add_a_worker_type", monkeypatch))
    assert "LanguageOutput(language='fr', matches=3, i=1)" in text
    assert "text: must not be empty" in text
