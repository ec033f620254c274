"""How vLLM's processes wait for each other on a CPU."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from deployments.vllm_runtime import cpu_shm_wakeup as vllm_waiting
from deployments.vllm_runtime.cpu_shm_wakeup import READERS, SPIN_S, notified

NEVER_S = 120.0
"""A look that no test lives to see."""


class Spin:
    """What is replaced."""

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
    """Makes a reader (True) or the writer (False) of one queue, whose readers look only when they are told."""
    monkeypatch.setattr(vllm_waiting, "POLL_S", NEVER_S)
    return lambda is_reader: notified(Spin)(is_reader, None, f"ipc:///tmp/{os.getpid()}-{request.node.name}")


def wait_in_thread(reader: Any, timeout_ms: int | None = None) -> threading.Thread:
    """A thread that ends when `reader`, which has looked for long enough, is awake again."""

    def wait() -> None:
        reader.wait()
        time.sleep(2 * SPIN_S)
        reader.wait(timeout_ms)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def fall_asleep(reader: Any) -> threading.Thread:
    """The same, asleep."""
    thread = wait_in_thread(reader)
    time.sleep(0.02)
    assert thread.is_alive()
    return thread


def woke(thread: threading.Thread) -> bool:
    """Whether it ends, within a part of `NEVER_S`."""
    thread.join(10)
    return not thread.is_alive()


def test_it_looks_at_once_then_sleeps_and_begins_anew_after_each_message(
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


def test_all_that_read_a_queue_are_woken(make: Make) -> None:
    writer, readers = make(False), [make(True) for _ in range(3)]
    asleep = [fall_asleep(reader) for reader in readers]
    writer.notify()
    assert all(woke(thread) for thread in asleep)


def test_a_reader_that_was_told_while_it_did_something_else_does_not_sleep(make: Make) -> None:
    writer, reader = make(False), make(True)
    writer.notify()
    assert woke(wait_in_thread(reader))


def test_a_writer_does_not_wait_for_a_reader_that_reads_nothing(make: Make) -> None:
    writer, reader, other = make(False), make(True), make(True)
    asleep = fall_asleep(other)
    for _ in range(10_000):
        writer.notify()
    assert woke(asleep)
    assert woke(wait_in_thread(reader))


def test_a_writer_without_readers_tells_nobody(make: Make) -> None:
    make(False).notify()


def test_a_reader_can_be_woken_to_give_up(make: Make) -> None:
    reader = make(True)
    asleep = fall_asleep(reader)
    reader.cancel()
    assert woke(asleep)
    assert reader.cancelled == 1
    writer = make(False)
    writer.cancel()
    assert writer.cancelled == 1


def test_a_reader_sleeps_no_longer_than_vllm_would(make: Make) -> None:
    assert woke(wait_in_thread(make(True), timeout_ms=10))
    assert woke(wait_in_thread(make(True), timeout_ms=0))


def test_more_readers_than_there_are_places_for_is_an_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_waiting, "READERS", 2)
    readers = make(True), make(True)
    with pytest.raises(RuntimeError, match="more than 2 readers"):
        make(True)
    assert len(readers) < READERS


@pytest.mark.vllm
def test_messages_of_vllms_own_queue_arrive_in_order_however_long_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.device_communicators import shm_broadcast

    monkeypatch.setattr(shm_broadcast, "SpinCondition", shm_broadcast.SpinCondition)
    monkeypatch.setattr(vllm_waiting, "POLL_S", NEVER_S)
    vllm_waiting.patch_shm_wait()
    assert shm_broadcast.SpinCondition.__name__ == "NotifiedCondition"
    writer: Any = shm_broadcast.MessageQueue(n_reader=2, n_local_reader=2)
    received: list[list[int]] = [[], []]

    def read(rank: int) -> None:
        reader = shm_broadcast.MessageQueue.create_from_handle(writer.export_handle(), rank)
        reader.wait_until_ready()
        received[rank].extend(reader.dequeue(timeout=NEVER_S) for _ in range(6))

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
def test_on_gpus_vllm_waits_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import platforms
    from vllm.distributed.device_communicators import shm_broadcast

    before = shm_broadcast.SpinCondition
    monkeypatch.setattr(type(platforms.current_platform), "is_cpu", lambda self: False)
    vllm_waiting.patch_shm_wait()
    assert shm_broadcast.SpinCondition is before
