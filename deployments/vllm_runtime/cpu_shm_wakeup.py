"""A sleeping wait for the message queue between vLLM's engine core and its worker process on a CPU.

The queue lies in shared memory, and vLLM's reader polls it without a pause for up to a second: nearly half of the CPU
time of a token of SmolLM2-135M, on a core that all other processes need. After that second vLLM waits for a ZeroMQ
message, through two more threads. There is no setting for either.

Here the reader polls for a millisecond and then sleeps until the writer sends it a datagram: one system call on each
side, with a wake-up latency of about 0.1 ms. A datagram that arrives while the reader polls or works stays in the
kernel's buffer and costs one extra poll, so none is lost. The socket addresses are abstract (Linux), so a killed
process leaves no file behind.
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

from deployments.vllm_runtime.private_api import SHM_WAKEUP, fits

SPIN_S = 1e-3
"""Seconds of polling before the reader sleeps: the worker process seldom sleeps between the tokens of a request, and
the engine core does. Measured (P2 in benchmarks/RESULTS.md)."""
POLL_S = 0.1
"""Seconds after which a sleeping reader polls without a datagram; should never be needed."""
MAX_READERS = 64
"""Processes that read one queue; more than a machine has devices."""


def patch_shm_wait() -> None:
    """Replace vLLM's `SpinCondition` in this process, for queues made from now on, where vLLM runs on a CPU of Linux
    and fits (`SHM_WAKEUP`). Beside a GPU there are cores to spare."""
    if sys.platform != "linux" or not _on_cpu() or not fits(SHM_WAKEUP):
        return
    import vllm.distributed.device_communicators.shm_broadcast as shm_broadcast

    shm_broadcast.SpinCondition = datagram_condition(shm_broadcast.SpinCondition)


def _on_cpu() -> bool:
    try:
        from vllm.platforms import current_platform

        return bool(current_platform.is_cpu())
    except (ImportError, AttributeError):  # the probe reports it
        return True


def datagram_condition(spin_condition: Any) -> Any:
    """A subclass of vLLM's `SpinCondition` whose readers sleep until a datagram arrives. Reader and writer must both be
    of it."""

    class DatagramCondition(spin_condition):  # type: ignore[misc]
        def __init__(self, is_reader: bool, context: Any, notify_address: str, *args: Any, **kwargs: Any) -> None:
            super().__init__(is_reader, context, notify_address, *args, **kwargs)
            self._addresses = [f"\0rbee-serve{notify_address[-64:]}#{number}" for number in range(MAX_READERS)]
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            weakref.finalize(self, self._socket.close)
            self._polling_since: float | None = None
            if is_reader:
                self._address = self._bind()
            else:
                self._socket.setblocking(False)

        def _bind(self) -> str:
            for address in self._addresses:
                try:
                    self._socket.bind(address)
                except OSError as exc:
                    if exc.errno != errno.EADDRINUSE:
                        raise
                else:
                    return address
            raise RuntimeError(f"a message queue of vLLM has more than {MAX_READERS} readers")

        def notify(self) -> None:
            """Wake all readers."""
            for address in self._addresses:
                try:
                    self._socket.sendto(b"\0", address)
                except BlockingIOError:  # an earlier datagram is still unread
                    continue
                except ConnectionRefusedError:  # not bound, and neither is any that follows
                    return

        def cancel(self) -> None:
            """Wake this reader, from another thread."""
            super().cancel()
            if self.is_reader:
                with suppress(OSError):  # an earlier datagram is still unread
                    self._socket.sendto(b"\0", socket.MSG_DONTWAIT, self._address)

        def record_read(self) -> None:
            """Start polling anew, after a message was read."""
            super().record_read()
            self._polling_since = None

        def wait(self, timeout_ms: int | None = None) -> None:
            """Return when the queue is to be polled again."""
            now = time.monotonic()
            if self._polling_since is None:
                self._polling_since = now
            if now - self._polling_since < SPIN_S:
                os.sched_yield()
                return
            self._socket.settimeout(POLL_S if timeout_ms is None else min(timeout_ms / 1000, POLL_S))
            with suppress(TimeoutError, BlockingIOError):
                self._socket.recv(1)

    return DatagramCondition
