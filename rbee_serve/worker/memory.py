"""Memory of processes and devices, in bytes, measured in a thread."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable

import psutil

from rbee_serve.state import MemorySource
from rbee_serve.worker.cuda_memory import cuda_memory
from rbee_serve.worker.spec import Device

logger = logging.getLogger(__name__)

WAIT_S = 10.0
"""How long a call outside of an event loop waits for a measurement. The driver takes a second where no process keeps it
initialised, and the process table as long on a machine that is busy."""


Measurement = tuple[int, MemorySource | None]
"""Bytes, and how they were counted if that is known."""


class MemoryGauge:
    """A measurement that is repeated only when it is older than `max_age_s`: reading the process table takes 5 to
    10 ms, and state is pushed many times a second.

    `measure` returns bytes, or a `Measurement`. It runs in a thread, one at a time, as a GPU's driver may take seconds
    or hang. In an event loop a call never waits: it returns the last value, which is 0 before there is one. Elsewhere
    it waits for the measurement that runs, at most `WAIT_S`.
    """

    def __init__(self, measure: Callable[[], int | Measurement], max_age_s: float = 5.0) -> None:
        self._measure = measure
        self._max_age_s = max_age_s
        self._measured_at = -math.inf
        self._last: Measurement = (0, None)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __call__(self) -> int:
        """Bytes, at most `max_age_s` old unless a measurement takes long."""
        running = self._measuring()
        if running is not None and not _in_event_loop():
            running.join(WAIT_S)
        return self._last[0]

    @property
    def source(self) -> MemorySource | None:
        """How the last value was counted; None if that is unknown."""
        return self._last[1]

    def _measuring(self) -> threading.Thread | None:
        """The thread that measures, if one does or has to."""
        with self._lock:
            if self._thread is None and time.monotonic() - self._measured_at > self._max_age_s:
                self._thread = threading.Thread(target=self._run, name="memory-gauge", daemon=True)
                self._thread.start()
            return self._thread

    def _run(self) -> None:
        try:
            value = self._measure()
            self._last = value if isinstance(value, tuple) else (value, None)
        except Exception:
            logger.exception("the memory could not be measured")
        with self._lock:
            self._measured_at, self._thread = time.monotonic(), None


def memory_gauge(device: Device, engine_bytes: Callable[[], int] = lambda: 0) -> MemoryGauge:
    """Measures what a model in this process and its descendants holds, in bytes: VRAM on a CUDA device, else RAM.

    `engine_bytes` is what processes of an engine report of their own memory on the GPU, for a driver that does not
    report it by process; 0 if they report nothing.
    """
    if device.accelerator == "cuda":
        return MemoryGauge(lambda: cuda_memory(device, engine_bytes))
    return MemoryGauge(lambda: (process_tree_bytes(), "ram"))


def process_tree_bytes(pid: int | None = None) -> int:
    """Resident bytes of a process (this one if `pid` is None) and its descendants; shared pages count once for each
    process."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
    except psutil.NoSuchProcess:
        return 0
    return total


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
