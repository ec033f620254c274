"""The stub of the Hugging Face Hub, for tests that download."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.model_files.stub_hub import Hub, running_hub


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as server:
        yield server
