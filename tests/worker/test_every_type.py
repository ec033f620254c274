"""Every built-in worker type keeps the contract, with a real small model where it needs one."""

from __future__ import annotations

import pkgutil
from typing import Any

import pytest

from deployments.registry import WORKER_TYPES
from rbee_serve.config import WorkerConfig
from rbee_serve.testing import check_worker_type
from rbee_serve.worker.registry import load_spec
from tests.served.models import (
    CLASSIFY,
    EMBED,
    EMBEDDING,
    GENERATE,
    LLM,
    MADE_MODELS,
    MULTIMODAL,
    RERANKER,
    SPEECH,
    TRANSCRIBE,
)

MODELS: dict[str, list[dict[str, Any]]] = {
    "vllm": [LLM, MULTIMODAL],
    "model": [CLASSIFY, EMBED, EMBEDDING, GENERATE, RERANKER, SPEECH, TRANSCRIBE],
}
CONFIGURED: dict[str, tuple[str, dict[str, Any]]] = {
    "/".join(filter(None, (worker["type"], worker.get("task")))): (mark, worker)
    for mark, workers in MODELS.items()
    for worker in workers
}
"""The mark and the configuration of each type that needs a model."""
IDLE_WITHIN_S = 30.0
"""Longer than the slowest single step of any of these models on a busy machine."""


def marked(name: str) -> Any:
    mark = CONFIGURED.get(name, (None, {}))[0]
    return pytest.param(name, marks=[getattr(pytest.mark, mark)] if mark else [])


def test_every_type_that_needs_a_model_has_a_configuration() -> None:
    needed = {name for name, path in WORKER_TYPES.items() if load_spec(path).needs_model}
    assert needed <= CONFIGURED.keys()


@pytest.mark.parametrize("name", [marked(name) for name in sorted(WORKER_TYPES)])
def test_the_type_keeps_the_contract(
    name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_spec(WORKER_TYPES[name])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fields = dict(CONFIGURED[name][1]) if name in CONFIGURED else {"id": "checked", "type": name}
    if make := MADE_MODELS.get(fields["id"]):
        folder = pkgutil.resolve_name(make)(tmp_path_factory.mktemp("model"))
        fields |= {"model_ref": f"file:{folder}", "model_name": "tiny"}
    check_worker_type(spec, WorkerConfig(**fields), idle_within_s=IDLE_WITHIN_S)
