"""Memory of processes and devices, in bytes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import psutil

from rbee_serve import nvml
from rbee_serve.nvml import NvmlUnavailable
from rbee_serve.worker.spec import Device


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


def cuda_tree_bytes(ids: tuple[str, ...]) -> int:
    """Bytes that this process and its descendants hold on the GPUs `ids` (`Device.ids`), as the driver counts them.

    0 where the driver does not report them (no `pynvml`, or a container that hides the process ids).
    """
    own = psutil.Process()
    pids = {own.pid, *(child.pid for child in own.children(recursive=True))}
    try:
        return sum(
            held or 0 for gpu_id in ids for pid, held in nvml.gpu(gpu_id).process_bytes().items() if pid in pids
        )
    except NvmlUnavailable:  # a missing number is no error
        return 0


class MemoryGauge:
    """A measurement that is repeated only when it is older than `max_age_s`: reading the process table takes 5 to
    10 ms, and state is pushed many times a second."""

    def __init__(self, measure: Callable[[], int], max_age_s: float = 5.0) -> None:
        self._measure = measure
        self._max_age_s = max_age_s
        self._measured_at = -math.inf
        self._bytes = 0

    def __call__(self) -> int:
        """Bytes, at most `max_age_s` old."""
        now = time.monotonic()
        if now - self._measured_at > self._max_age_s:
            self._bytes, self._measured_at = self._measure(), now
        return self._bytes


def memory_gauge(device: Device) -> MemoryGauge:
    """Measures what a model in this process and its descendants holds, in bytes: VRAM on a CUDA device, else RAM."""
    if device.accelerator == "cuda":
        return MemoryGauge(lambda: cuda_tree_bytes(device.ids))
    return MemoryGauge(process_tree_bytes)
