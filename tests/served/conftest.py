"""An application behind each frontend, for the tests that are run through several."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.conftest import Served
from tests.served.frontends import Frontend, default_frontend, haproxy_frontend, open_frontend
from tests.served.health_probe import HealthProbe


@pytest.fixture(scope="session")
def frontend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """The frontend that the test names with `via`. pytest runs the tests of one frontend together."""
    if request.param in ("own", "throughput"):
        served: Served = request.getfixturevalue("served")
        url = served.url if request.param == "own" else served.proxy_url
        context = open_frontend(request.param, url, os.getpid())
    else:
        start = {"default": default_frontend, "haproxy": haproxy_frontend}[request.param]
        context = start(tmp_path_factory.mktemp(request.param))
    with context as frontend:
        yield frontend


@pytest.fixture(scope="module")
def probe(frontend: Frontend) -> HealthProbe:
    """The probe of the processes behind the frontend."""
    return HealthProbe(frontend)
