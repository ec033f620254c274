"""An application behind each of Ray Serve's doors, for the tests that go through several."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.conftest import Served
from tests.served.doors import Door, behind_default, behind_haproxy, opened
from tests.served.ward import Ward


@pytest.fixture(scope="session")
def door(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """The door that the test names with `through`. pytest runs the tests of one door together."""
    if request.param == "throughput":
        served: Served = request.getfixturevalue("served")
        opening = opened("throughput", served.url, os.getpid())
    else:
        behind = {"default": behind_default, "haproxy": behind_haproxy}[request.param]
        opening = behind(tmp_path_factory.mktemp(request.param))
    with opening as door:
        yield door


@pytest.fixture(scope="module")
def ward(door: Door) -> Ward:
    """What watches over the processes behind the door."""
    return Ward(door)
