"""Measurements of memory: when they are repeated, and that nothing in an event loop waits for one."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from rbee_serve.worker import memory
from rbee_serve.worker.memory import Measurement, MemoryGauge, memory_gauge
from rbee_serve.worker.spec import Device
from tests.gpus.fake_nvml import GIB, FakeGpu, FakeNvml
from tests.served.waiting import eventually


class Slow:
    """A measurement that takes until it is released, and returns how many there were."""

    def __init__(self) -> None:
        self.count = 0
        self.threads: set[int] = set()
        self.released = threading.Event()

    def __call__(self) -> int:
        self.count += 1
        self.threads.add(threading.get_ident())
        assert self.released.wait(30)
        return self.count


@pytest.fixture
def slow() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    slow.released.set()


def finished(gauge: MemoryGauge) -> Callable[[], bool]:
    return lambda: gauge._thread is None


async def test_in_an_event_loop_the_last_value_is_returned_while_a_measurement_runs(slow: Slow) -> None:
    gauge = MemoryGauge(slow, max_age_s=0)
    assert [gauge() for _ in range(10)] == [0] * 10
    assert slow.count == 1
    slow.released.set()
    eventually(finished(gauge))
    slow.released.clear()
    assert [gauge() for _ in range(10)] == [1] * 10
    eventually(lambda: slow.count == 2)
    assert threading.get_ident() not in slow.threads


def test_elsewhere_a_call_waits_for_the_measurement(slow: Slow) -> None:
    threading.Timer(0.2, slow.released.set).start()
    assert MemoryGauge(slow)() == 1


def test_elsewhere_a_driver_that_hangs_is_given_up_after_a_while(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "WAIT_S", 0.1)
    gauge = MemoryGauge(slow, max_age_s=0)
    assert [gauge(), gauge()] == [0, 0]
    assert slow.count == 1


def test_a_value_is_measured_again_when_it_is_too_old() -> None:
    values = iter(range(1, 100))
    gauge = MemoryGauge(lambda: next(values), max_age_s=60)
    assert [gauge(), gauge(), gauge()] == [1, 1, 1]
    gauge = MemoryGauge(lambda: next(values), max_age_s=0)
    assert [gauge(), gauge(), gauge()] == [2, 3, 4]


def test_a_measurement_may_name_its_source_and_its_failure_keeps_the_last_value(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def measure() -> Measurement:
        return next(values)

    values: Iterator[Measurement] = iter([(5, "driver"), (6, None)])
    gauge = MemoryGauge(measure, max_age_s=0)
    assert (gauge(), gauge.source) == (5, "driver")
    assert (gauge(), gauge.source) == (6, None)
    assert caplog.records == []
    assert (gauge(), gauge.source) == (6, None)
    assert "the memory could not be measured" in caplog.text


def test_without_a_gpu_the_memory_is_that_of_the_processes() -> None:
    for accelerator in ("cpu", "metal"):
        gauge = memory_gauge(Device(accelerator))
        assert gauge() > 1024**2
        assert gauge.source == "ram"


async def test_a_driver_that_hangs_does_not_block_the_event_loop(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    class HangingNvml(FakeNvml):
        def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:  # noqa: N802
            slow()
            return super().nvmlDeviceGetHandleByIndex(index)

    driver = HangingNvml(FakeGpu(processes={os.getpid(): 2 * GIB}))
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    gauge = memory_gauge(Device("cuda"))
    assert (gauge(), gauge.source) == (0, None)
    slow.released.set()
    eventually(finished(gauge))
    assert (gauge(), gauge.source) == (2 * GIB, "driver")
