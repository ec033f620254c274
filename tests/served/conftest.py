"""An application behind each door, for the tests that go through several."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.conftest import Served
from tests.served.frontends import Frontend, behind_default, behind_haproxy, opened
from tests.served.health_probe import HealthProbe


@pytest.fixture(scope="session")
def door(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """The door that the test names with `through`. pytest runs the tests of one door together."""
    if request.param in ("own", "throughput"):
        served: Served = request.getfixturevalue("served")
        url = served.url if request.param == "own" else served.proxy_url
        opening = opened(request.param, url, os.getpid())
    else:
        behind = {"default": behind_default, "haproxy": behind_haproxy}[request.param]
        opening = behind(tmp_path_factory.mktemp(request.param))
    with opening as door:
        yield door


@pytest.fixture(scope="module")
def ward(door: Frontend) -> HealthProbe:
    """What watches over the processes behind the door."""
    return HealthProbe(door)
