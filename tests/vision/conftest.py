"""Models that several test files use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments.vision import classify
from deployments.vision.classify import ClassifyBackend
from tests import devices
from tests.vision import tiny_pipelines
from tests.vision.encoders import MAKERS, context


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion, with an adapter in the folder `made` beside it."""
    root = tmp_path_factory.mktemp("sd")
    tiny_pipelines.save_adapter(tiny_pipelines.stable_diffusion(), root / "made")
    return tiny_pipelines.save(tiny_pipelines.stable_diffusion(), root / "pipeline")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: maker(tmp_path_factory.mktemp(name)) for name, maker in MAKERS.items()}


@pytest.fixture(scope="module")
def backends(folders: dict[str, Path]) -> Iterator[dict[str, ClassifyBackend]]:
    loaded = {name: classify.load(context(folder)) for name, folder in folders.items()}
    yield loaded
    for backend in loaded.values():
        backend.close()


@pytest.fixture(scope="module")
def pipelines(folders: dict[str, Path]) -> dict[str, Any]:
    """Transformers alone on the same files."""
    from transformers import pipeline

    tasks = {"vit": "image-classification"}
    return {
        name: pipeline(tasks.get(name, "zero-shot-image-classification"), model=str(folder), device=devices.NAME)
        for name, folder in folders.items()
    }
