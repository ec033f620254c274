"""The workers with a model, and the mark of the tests that need them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

CONFIGURATION = Path(__file__).resolve().parents[2] / "serve_config.yaml"
CONFIGURED: list[dict[str, Any]] = yaml.safe_load(CONFIGURATION.read_text())["applications"][0]["args"]["workers"]


def default_worker(worker_type: str, task: str | None = None, **changes: Any) -> dict[str, Any]:
    """The worker of that type in `serve_config.yaml`, with changes. It reserves no cores: Ray has few in the tests."""
    [worker] = [w for w in CONFIGURED if (w["type"], w.get("task")) == (worker_type, task)]
    return worker | {"cpus": 0} | changes


LLM = default_worker("llm")
EMBEDDING = default_worker("embedding")
# A single step of a transcription may take long where other programs run too.
TRANSCRIBE = default_worker("audio", "transcribe", engine={"max_audio_s": 120}, hang_timeout_s=120)
SPEECH = default_worker("audio", "generate")
DIGITS = default_worker("vision", "classify")
GENERATE = default_worker("vision", "generate")
MULTIMODAL = default_worker("multimodal")
DEFAULT_WORKERS = (LLM, EMBEDDING, TRANSCRIBE, SPEECH, DIGITS, GENERATE, MULTIMODAL)
CLASSIFY: dict[str, Any] = {"id": "clip-classify", "type": "vision", "task": "classify", "cpus": 0, "threads": 1}
EMBED: dict[str, Any] = {"id": "clip-embed", "type": "vision", "task": "embed", "cpus": 0, "threads": 1}
RERANKER: dict[str, Any] = {"id": "reranker-0", "type": "reranker", "cpus": 0, "threads": 1}
MADE_MODELS = {
    RERANKER["id"]: "tests.tiny_cross_encoder:tiny_cross_encoder",
    CLASSIFY["id"]: "tests.vision.tiny_models:random_clip",
    EMBED["id"]: "tests.vision.tiny_models:random_clip",
}
"""Workers whose models no package carries, with the function that makes one in a folder."""


def serving(*workers: dict[str, Any]) -> pytest.MarkDecorator:
    """The test needs these workers, which are served only where a selected test needs them: their models take up to
    minutes to load. The workers that a worker uses come with it."""
    used = {worker_id for worker in workers for worker_id in worker.get("uses", {}).values()}
    return pytest.mark.serving(*workers, *(worker for worker in (SPEECH, GENERATE) if worker["id"] in used))
