"""How vLLM's processes wait for each other on a CPU."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest

from deployments import vllm_waiting
from deployments.vllm_waiting import (
    AT_ONCE_S,
    LONGEST_PAUSE_S,
    LOOK_MS,
    SHORT_PAUSE_S,
    SPIN_S,
    pause_s,
    sleeping,
)


@pytest.mark.parametrize(
    ("waited_s", "expected"),
    [
        (0.0, 0.0),
        (AT_ONCE_S / 2, 0.0),
        (80e-6, 10e-6),
        (5e-3, SHORT_PAUSE_S),
        (12.8e-3, 200e-6),
        (0.07, LONGEST_PAUSE_S),
    ],
)
def test_a_pause_is_a_part_of_what_was_waited_and_half_a_millisecond_at_most(waited_s: float, expected: float) -> None:
    assert pause_s(waited_s) == pytest.approx(expected)


class Spin:
    """What is replaced."""

    def __init__(self) -> None:
        self.reads = 0
        self.waits: list[int | None] = []

    def record_read(self) -> None:
        self.reads += 1

    def wait(self, timeout_ms: int | None = None) -> None:
        self.waits.append(timeout_ms)


def test_it_looks_at_once_then_sleeps_then_waits_to_be_told_and_begins_anew_after_each_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, slept, yielded = [100.0], list[float](), list[float]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(os, "sched_yield", lambda: yielded.append(now[0]))
    condition = sleeping(Spin)()
    condition.wait(1000)
    assert (len(yielded), slept, condition.waits) == (1, [], [])
    now[0] += 0.1
    condition.wait(1000)
    assert (len(yielded), slept, condition.waits) == (1, [LONGEST_PAUSE_S], [])
    now[0] += SPIN_S
    for timeout_ms in (5000, 7, None):
        condition.wait(timeout_ms)
    assert (len(yielded), len(slept), condition.waits) == (1, 1, [LOOK_MS, 7, LOOK_MS])
    condition.record_read()
    condition.wait(1000)
    assert (len(yielded), len(slept), condition.reads) == (2, 1, 1)


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
def test_messages_of_vllms_own_queue_arrive_in_order_however_long_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.device_communicators import shm_broadcast

    monkeypatch.setattr(shm_broadcast, "SpinCondition", shm_broadcast.SpinCondition)
    vllm_waiting.let_waiters_sleep()
    assert shm_broadcast.SpinCondition.__name__ == "SleepingCondition"
    writer: Any = shm_broadcast.MessageQueue(n_reader=1, n_local_reader=1)
    received: list[int] = []

    def read() -> None:
        reader = shm_broadcast.MessageQueue.create_from_handle(writer.export_handle(), 0)
        reader.wait_until_ready()
        received.extend(reader.dequeue(timeout=30) for _ in range(6))

    thread = threading.Thread(target=read)
    thread.start()
    writer.wait_until_ready()
    for number, pause in enumerate((0.0, 0.0, 0.001, 0.05, 1.2, 0.0)):
        time.sleep(pause)
        writer.enqueue(number)
    thread.join(30)
    assert received == [0, 1, 2, 3, 4, 5]


@pytest.mark.vllm
def test_on_gpus_vllm_waits_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import platforms
    from vllm.distributed.device_communicators import shm_broadcast

    before = shm_broadcast.SpinCondition
    monkeypatch.setattr(type(platforms.current_platform), "is_cpu", lambda self: False)
    vllm_waiting.let_waiters_sleep()
    assert shm_broadcast.SpinCondition is before
