"""How torch divides a CPU's cores among concurrent batches."""

from __future__ import annotations

import threading

from rbee_serve.worker.spec import LoadContext

MAX_BATCHES = 4
"""Concurrent batches on a CPU. Each needs memory for its own activations."""


class BatchConcurrency:
    """On a CPU, one intra-op thread per batch while several batches are pending, and all threads for a single one.

    Threads that share a batch synchronize at the end of each of its hundreds of operations. On two cores
    all-MiniLM-L6-v2 embeds 280 sentences/s in two concurrent batches of 8 with one thread each, and 220 with two
    threads for one batch. Other devices run one batch at a time.
    """

    def __init__(self, context: LoadContext) -> None:
        import torch

        self._torch = torch
        self._threads = context.worker.threads or int(torch.get_num_threads())
        self.count = min(self._threads, MAX_BATCHES) if context.device.accelerator == "cpu" else 1
        """Number of concurrent batches."""
        self._current = threading.local()

    def enter(self, alone: bool) -> None:
        """Set torch's number of threads for the next batch of the calling thread. `alone`: it is the only batch."""
        threads = self._threads if alone else self._threads // self.count
        if self.count > 1 and getattr(self._current, "threads", None) != threads:
            self._torch.set_num_threads(threads)
            self._current.threads = threads
