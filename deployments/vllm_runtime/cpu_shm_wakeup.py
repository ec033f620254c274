"""How vLLM's engine and its worker process wait for each other on a CPU.

They exchange messages in shared memory, and whoever waits looks at it without a pause for as long as a second: nearly
half of the CPU time of a token of SmolLM2-135M, on a core that all other processes need. After that second vLLM waits
to be told by ZeroMQ, through two more threads. There is no setting for either.

Here the reader looks for a millisecond and then sleeps until the writer sends it a datagram: a system call on each
side, which wakes it within some 0.1 ms. A datagram that comes while the reader looks, or is busy, is kept by the kernel
and costs one look too many, so none is missed. The addresses are abstract, which Linux has, so a process that is killed
leaves nothing behind.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
import weakref
from contextlib import suppress
from typing import Any

SPIN_S = 1e-3
"""So long the other one is waited for without sleep: the worker process seldom sleeps between the tokens of a request,
and the engine does. By measurement (P2 in benchmarks/RESULTS.md)."""
POLL_S = 0.1
"""And so often a sleeper looks although it was not told anything, which should never help."""
READERS = 64
"""The most processes that read one queue: more than any machine has places for."""


def patch_shm_wait() -> None:
    """In this process, from the next queue on, where vLLM runs on a CPU of Linux. On GPUs there are cores to spare."""
    from vllm.distributed.device_communicators import shm_broadcast
    from vllm.platforms import current_platform

    if current_platform.is_cpu() and sys.platform == "linux":
        shm_broadcast.SpinCondition = notified(shm_broadcast.SpinCondition)


def notified(spin: Any) -> Any:
    """vLLM's `SpinCondition`, whose readers sleep until they are told. The writer must be of this class too."""

    class NotifiedCondition(spin):  # type: ignore[misc]
        def __init__(self, is_reader: bool, context: Any, notify_address: str, *rest: Any, **named: Any) -> None:
            super().__init__(is_reader, context, notify_address, *rest, **named)
            self._places = [f"\0rbee-serve{notify_address[-64:]}#{place}" for place in range(READERS)]
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            weakref.finalize(self, self._socket.close)
            self._since: float | None = None
            if is_reader:
                self._place = self._take_place()
            else:
                self._socket.setblocking(False)

        def _take_place(self) -> str:
            for place in self._places:
                try:
                    self._socket.bind(place)
                except OSError as exc:
                    if exc.errno != errno.EADDRINUSE:
                        raise
                else:
                    return place
            raise RuntimeError(f"a queue of vLLM's has more than {READERS} readers")

        def notify(self) -> None:
            """Wake all readers."""
            for place in self._places:
                try:
                    self._socket.sendto(b"\0", place)
                except BlockingIOError:  # it has not read what it was told before
                    continue
                except ConnectionRefusedError:  # nobody's, so are all that follow
                    return

        def cancel(self) -> None:
            """Wake this reader, from another thread."""
            super().cancel()
            if self.is_reader:
                with suppress(OSError):  # it has not read what it was told before
                    self._socket.sendto(b"\0", socket.MSG_DONTWAIT, self._place)

        def record_read(self) -> None:
            """A message has come."""
            super().record_read()
            self._since = None

        def wait(self, timeout_ms: int | None = None) -> None:
            """Return when it is time to look again."""
            now = time.monotonic()
            if self._since is None:
                self._since = now
            if now - self._since < SPIN_S:
                os.sched_yield()
                return
            self._socket.settimeout(POLL_S if timeout_ms is None else min(timeout_ms / 1000, POLL_S))
            with suppress(TimeoutError, BlockingIOError):
                self._socket.recv(1)

    return NotifiedCondition
