"""Workers with one GPU, several or a fraction, on a Ray that is configured with four GPUs that do not exist."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.conftest import DEVICES, PRETENDED_GPUS, Served
from tests.served.models import serving
from tests.served.waiting import eventually

pytestmark = [pytest.mark.ray, serving(*DEVICES)]


def devices(served: Served, worker_id: str) -> dict[str, Any]:
    """The devices that the worker's process has."""
    eventually(lambda: httpx.get(f"{served.base(worker_id)}/v1/ready").json()["ready"], 60)
    response = httpx.post(f"{served.base(worker_id)}/v1/inference", json={"stream": False}, timeout=30).json()
    return {name: response[name] for name in ("given", "fraction", "visible")}


def test_each_worker_sees_its_own_devices_and_halves_share_one(served: Served) -> None:
    whole, pair = devices(served, "gpu-one"), devices(served, "gpu-pair")
    halves = [devices(served, "gpu-half-a"), devices(served, "gpu-half-b")]
    assert (len(whole["given"]), whole["fraction"]) == (1, 1.0)
    assert (len(pair["given"]), pair["fraction"]) == (2, 1.0)
    assert halves[0] == halves[1]
    assert (len(halves[0]["given"]), halves[0]["fraction"]) == (1, 0.5)
    used = [*whole["given"], *pair["given"], *halves[0]["given"]]
    assert sorted(used) == list(PRETENDED_GPUS)
    for worker in (whole, pair, *halves):
        assert worker["visible"] == worker["given"]


def test_a_worker_without_gpus_sees_none(served: Served) -> None:
    assert devices(served, "gpu-none")["visible"] == []


@pytest.mark.parametrize("worker_id", ["gpu-one", "gpu-pair", "gpu-half-a"])
def test_info_and_the_ready_callback_report_the_devices(served: Served, worker_id: str) -> None:
    indices = range(len(devices(served, worker_id)["given"]))  # no driver knows the numbers of these GPUs
    info = httpx.get(f"{served.base(worker_id)}/info").json()
    assert info["devices"] == [f"GPU-{index}" for index in indices]
    assert info["device"] == info["devices"][0]
    eventually(lambda: served.hive.ready(worker_id))
    message = served.hive.ready(worker_id)[-1]
    assert (message["backend"], message["device"], message["devices"]) == ("cuda", 0, list(indices))
