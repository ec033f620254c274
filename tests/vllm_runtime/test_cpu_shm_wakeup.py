"""The sleeping wait for messages between vLLM's processes on a CPU."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from deployments.vllm_runtime import cpu_shm_wakeup
from deployments.vllm_runtime.cpu_shm_wakeup import MAX_READERS, SPIN_S, datagram_condition

LONG_S = 120.0
"""A poll interval that no test reaches."""


class Spin:
    """A stand-in for vLLM's `SpinCondition`."""

    def __init__(self, is_reader: bool, context: object, notify_address: str) -> None:
        self.is_reader = is_reader
        self.reads = 0
        self.cancelled = 0

    def record_read(self) -> None:
        self.reads += 1

    def cancel(self) -> None:
        self.cancelled += 1


Make = Callable[[bool], Any]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Make:
    """Makes a reader (True) or the writer (False) of one queue, whose readers wake up only by a datagram."""
    monkeypatch.setattr(cpu_shm_wakeup, "POLL_S", LONG_S)
    return lambda is_reader: datagram_condition(Spin)(is_reader, None, f"ipc:///tmp/{os.getpid()}-{request.node.name}")


def wait_in_thread(reader: Any, timeout_ms: int | None = None) -> threading.Thread:
    """A thread that polls for `SPIN_S`, then sleeps, and ends when the reader is awake again."""

    def wait() -> None:
        reader.wait()
        time.sleep(2 * SPIN_S)
        reader.wait(timeout_ms)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def sleeping_thread(reader: Any) -> threading.Thread:
    """Such a thread, asleep."""
    thread = wait_in_thread(reader)
    time.sleep(0.02)
    assert thread.is_alive()
    return thread


def woke(thread: threading.Thread) -> bool:
    """Whether the thread ends, long before `LONG_S`."""
    thread.join(10)
    return not thread.is_alive()


def test_a_reader_polls_then_sleeps_and_polls_again_after_each_message(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, yielded = [100.0], list[float]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(os, "sched_yield", lambda: yielded.append(now[0]))
    reader = make(True)
    reader.wait()
    now[0] += SPIN_S / 2
    reader.wait()
    assert len(yielded) == 2
    now[0] += SPIN_S
    reader.wait(10)
    assert len(yielded) == 2
    reader.record_read()
    reader.wait()
    assert len(yielded) == 3
    assert reader.reads == 1


def test_all_readers_of_a_queue_wake_up(make: Make) -> None:
    writer, readers = make(False), [make(True) for _ in range(3)]
    asleep = [sleeping_thread(reader) for reader in readers]
    writer.notify()
    assert all(woke(thread) for thread in asleep)


def test_a_reader_that_was_notified_while_it_worked_does_not_sleep(make: Make) -> None:
    writer, reader = make(False), make(True)
    writer.notify()
    assert woke(wait_in_thread(reader))


def test_a_writer_never_waits_for_a_reader(make: Make) -> None:
    writer, reader, other = make(False), make(True), make(True)
    asleep = sleeping_thread(other)
    for _ in range(10_000):
        writer.notify()
    assert woke(asleep)
    assert woke(wait_in_thread(reader))


def test_a_writer_without_readers_does_nothing(make: Make) -> None:
    make(False).notify()


def test_cancel_wakes_a_reader(make: Make) -> None:
    reader = make(True)
    asleep = sleeping_thread(reader)
    reader.cancel()
    assert woke(asleep)
    assert reader.cancelled == 1
    writer = make(False)
    writer.cancel()
    assert writer.cancelled == 1


def test_a_reader_sleeps_no_longer_than_vllm_s_timeout(make: Make) -> None:
    assert woke(wait_in_thread(make(True), timeout_ms=10))
    assert woke(wait_in_thread(make(True), timeout_ms=0))


def test_more_readers_than_addresses_are_an_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_shm_wakeup, "MAX_READERS", 2)
    readers = make(True), make(True)
    with pytest.raises(RuntimeError, match="more than 2 readers"):
        make(True)
    assert len(readers) < MAX_READERS


@pytest.mark.vllm
def test_messages_of_vllms_own_queue_arrive_in_order_after_any_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.device_communicators import shm_broadcast

    monkeypatch.setattr(shm_broadcast, "SpinCondition", shm_broadcast.SpinCondition)
    monkeypatch.setattr(cpu_shm_wakeup, "POLL_S", LONG_S)
    cpu_shm_wakeup.patch_shm_wait()
    assert shm_broadcast.SpinCondition.__name__ == "DatagramCondition"
    writer: Any = shm_broadcast.MessageQueue(n_reader=2, n_local_reader=2)
    received: list[list[int]] = [[], []]

    def read(rank: int) -> None:
        reader = shm_broadcast.MessageQueue.create_from_handle(writer.export_handle(), rank)
        reader.wait_until_ready()
        received[rank].extend(reader.dequeue(timeout=LONG_S) for _ in range(6))

    threads = [threading.Thread(target=read, args=(rank,), daemon=True) for rank in range(2)]
    for thread in threads:
        thread.start()
    writer.wait_until_ready()
    for number, pause in enumerate((0.0, 0.0, 0.001, 0.05, 1.2, 0.0)):
        time.sleep(pause)
        writer.enqueue(number)
    for thread in threads:
        thread.join(30)
    assert received == [[0, 1, 2, 3, 4, 5]] * 2


@pytest.mark.vllm
def test_on_gpus_vllm_is_not_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import platforms
    from vllm.distributed.device_communicators import shm_broadcast

    before = shm_broadcast.SpinCondition
    monkeypatch.setattr(type(platforms.current_platform), "is_cpu", lambda self: False)
    cpu_shm_wakeup.patch_shm_wait()
    assert shm_broadcast.SpinCondition is before
