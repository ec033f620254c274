"""A pipeline of diffusers that several test files use."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vision import tiny_pipelines


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion, with an adapter in the folder `made` beside it."""
    root = tmp_path_factory.mktemp("sd")
    tiny_pipelines.save_adapter(tiny_pipelines.stable_diffusion(), root / "made")
    return tiny_pipelines.save(tiny_pipelines.stable_diffusion(), root / "pipeline")
