"""Importing vLLM, which sets environment variables and warns."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from unittest import mock

import pytest


@pytest.fixture(autouse=True)
def vllm_environment(request: pytest.FixtureRequest) -> Iterator[None]:
    """Keeps what the import of vLLM sets in the environment from the processes of other tests."""
    if request.node.get_closest_marker("vllm") is None:
        yield
        return
    with warnings.catch_warnings(), mock.patch.dict(os.environ):
        warnings.simplefilter("ignore")
        yield
