"""The plugin that vLLM loads in each of its processes (entry point group `vllm.general_plugins`).

It registers our loader (`progress_loader`), applies the patch of the message queue (`cpu_shm_wakeup`), reports the
process's GPU memory (`engine_memory`) and the exception that ends it (`failure_report`), and ends the process with its
replica. vLLM watches its child processes but not its parent: without this, the engine of a killed replica would hold
its memory and its GPU for ever. So each engine process checks its parent once a second. The sockets of a killed
replica's engine are removed then.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time

from deployments.vllm_runtime.cpu_shm_wakeup import patch_shm_wait
from deployments.vllm_runtime.engine_memory import report_memory
from deployments.vllm_runtime.failure_report import report_failures
from deployments.vllm_runtime.progress_loader import register_loader
from deployments.vllm_runtime.socket_folder import remove_socket_folder
from deployments.vllm_runtime.vllm_engine import OWNER_PID

CHECK_S = 1.0
"""Seconds between two checks of the parent process."""


def register() -> None:
    """Called by vLLM. Does nothing in processes that rbee-serve did not start."""
    if OWNER_PID not in os.environ:
        return
    if (parent := multiprocessing.parent_process()) is not None:  # not the replica itself
        # The parent that started it: by now, seconds later, it may be dead and another one have adopted this process.
        threading.Thread(target=_exit_with, args=(parent.pid,), name="parent-watch", daemon=True).start()
        threading.Thread(target=report_memory, name="memory-report", daemon=True).start()
        report_failures()
    register_loader()
    patch_shm_wait()


def _exit_with(parent: int | None) -> None:
    while os.getppid() == parent:
        time.sleep(CHECK_S)
    if str(parent) == os.environ[OWNER_PID]:  # not that of a process between them, while the replica lives
        remove_socket_folder()
    os._exit(1)
