"""The GPU memory of vLLM's processes, where the driver does not report it by process.

Each process writes its bytes into a file in the engine's folder (`socket_folder`), and the replica adds them up
(`rbee_serve.worker.cuda_memory`).
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import psutil

from deployments.vllm_runtime.socket_folder import own_folder
from rbee_serve.worker.cuda_memory import torch_cuda_bytes

PERIOD_S = 5.0
"""Seconds between two reports of a process."""


def report_memory() -> None:
    """Report the GPU memory of this process every `PERIOD_S`. Runs in a thread of an engine's process, without end."""
    while True:
        write_report(torch_cuda_bytes())
        time.sleep(PERIOD_S)


def write_report(held: int) -> None:
    """Report the bytes that this process holds on GPUs. A process without any reports nothing."""
    folder = own_folder()
    if folder is None or not held:
        return
    file = _file(folder, os.getpid())
    new = file.with_suffix(".new")
    with suppress(OSError):  # the replica has ended, and the folder with it
        new.write_text(str(held))
        new.replace(file)


def engine_bytes() -> int:
    """The bytes that the processes below this one have reported; 0 if none has."""
    folder = own_folder()
    if folder is None:
        return 0
    total = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(FileNotFoundError):
            total += int(_file(folder, process.pid).read_text())
    return total


def _file(folder: str, pid: int) -> Path:
    return Path(folder, f"gpu-memory-{pid}")
