"""Fixtures of the tests that send raw requests to the ingress."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ingress.origin_servers import with_token, without_token


@pytest.fixture(scope="module", params=["httptools", "h11"])
def open_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server without a token."""
    with without_token(request.param) as url:
        yield url


@pytest.fixture(scope="module")
def url_with_token() -> Iterator[str]:
    """A server with a token."""
    with with_token() as url:
        yield url
