"""The device that a replica gets: the ids of its GPUs, their numbers, and GPUs that are not its own."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.worker import device as device_module
from rbee_serve.worker.device import choose_device, device_indices
from rbee_serve.worker.spec import Device
from tests.device_worker import SPEC
from tests.gpus.fake_nvml import FakeGpu, FakeNvml


def worker(**settings: Any) -> WorkerConfig:
    return WorkerConfig(id="w", type="tests.device_worker:SPEC", **settings)


@pytest.mark.parametrize(
    ("gpus", "assigned", "visible", "device"),
    [
        (1, ["3"], "3", Device("cuda", ("3",))),
        (0.5, ["GPU-8f9d3c"], "GPU-8f9d3c", Device("cuda", ("GPU-8f9d3c",), 0.5)),
        (0.25, ["MIG-1b2c"], "MIG-1b2c", Device("cuda", ("MIG-1b2c",), 0.25)),
        (2, ["GPU-a", "GPU-b"], "GPU-b,GPU-a", Device("cuda", ("GPU-b", "GPU-a"))),
    ],
)
def test_gpus_have_the_ids_and_the_order_in_which_the_process_sees_them(
    gpus: float, assigned: list[str], visible: str, device: Device
) -> None:
    assert choose_device(worker(gpus=gpus), SPEC, assigned, visible) == device


@pytest.mark.parametrize(
    ("visible", "sees"),
    [(None, "all GPUs"), ("", "none"), ("0,1,2", "GPU 0,1,2"), ("0", "GPU 0"), ("GPU-a", "GPU GPU-a")],
)
def test_a_process_that_sees_other_gpus_than_its_own_is_refused(visible: str | None, sees: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        choose_device(worker(gpus=1), SPEC, ["2"], visible)
    assert str(refused.value) == (
        f"worker w: Ray assigned it GPU 2, but its process sees {sees} (CUDA_VISIBLE_DEVICES); "
        "start Ray without RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
    )


def test_a_worker_without_gpus_may_see_any() -> None:
    assert choose_device(worker(), SPEC, [], "0,1") == Device("cpu")


def test_cuda_without_gpus_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="accelerator cuda needs `gpus`"):
        choose_device(worker(backend="cuda"), SPEC, [], "0")


GPUS = [FakeGpu(uuid=f"GPU-{letter}") for letter in "abc"]
PART = FakeGpu(uuid="MIG-d", parent=GPUS[2])


@pytest.mark.parametrize(
    ("ids", "with_driver", "without"),
    [
        (("0",), (0,), (0,)),
        (("3", "1"), (1, 3), (1, 3)),
        (("GPU-c", "GPU-b"), (1, 2), (0, 1)),
        (("MIG-d",), (2,), (0,)),
        (("GPU-c", "MIG-d"), (2,), (0, 1)),
        (("GPU-a", "GPU-x"), (0, 1), (0, 1)),
    ],
)
async def test_the_numbers_of_devices_are_the_drivers_else_their_places(
    ids: tuple[str, ...], with_driver: tuple[int, ...], without: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, expected in ((FakeNvml(*GPUS, PART), with_driver), (None, without)):
        monkeypatch.setitem(sys.modules, "pynvml", module)
        assert await device_indices(Device("cuda", ids)) == expected


async def test_a_driver_that_hangs_delays_a_load_by_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class HangingNvml(FakeNvml):
        def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:  # noqa: N802
            assert released.wait(30)
            return super().nvmlDeviceGetHandleByUUID(uuid)

    released = threading.Event()
    monkeypatch.setitem(sys.modules, "pynvml", HangingNvml(*GPUS))
    monkeypatch.setattr(device_module, "DRIVER_TIMEOUT_S", 0.1)
    try:
        assert await device_indices(Device("cuda", ("GPU-c", "GPU-b"))) == (0, 1)
    finally:
        released.set()
