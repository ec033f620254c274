"""Loaded by vLLM in each of its own processes (entry point group `vllm.general_plugins`).

It makes our loader known there (`vllm_loader`), lets who waits sleep (`vllm_waiting`), and keeps the processes from
outliving their replica: one whose worker replica was killed would keep its memory, and its GPU, for ever, since vLLM
watches its children, but nobody watches the parent. So every engine process looks once a second whether its parent is
still there.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time

from deployments.vllm_runtime.cpu_shm_wakeup import patch_shm_wait
from deployments.vllm_runtime.progress_loader import register_loader
from deployments.vllm_runtime.vllm_engine import OWNER_PID

PERIOD_S = 1.0


def register() -> None:
    """Called by vLLM. Does nothing in processes that rbee-serve did not start."""
    if OWNER_PID not in os.environ:
        return
    register_loader()
    patch_shm_wait()
    if multiprocessing.parent_process() is None:  # the replica itself
        return
    threading.Thread(target=_leave_with, args=(os.getppid(),), name="rbee-orphan-watch", daemon=True).start()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PERIOD_S)
    os._exit(1)
