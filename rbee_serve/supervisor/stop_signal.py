"""SIGTERM, SIGINT and SIGHUP: the first starts a drained stop, a second one stops at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STOPPED_AT_ONCE = 130
"""The exit code after a second signal."""


class Stopped(BaseException):
    """A signal arrived during a step that must be interrupted. Like KeyboardInterrupt, it must not be swallowed."""


class StopSignal:
    """Records that a signal arrived. To be created and used in the main thread."""

    def __init__(self) -> None:
        self._received = threading.Event()
        self._interrupting = False

    def install(self) -> None:
        """Install the handlers. To be called again after `ray.init`, which replaces that of SIGTERM. A signal that is
        ignored, as SIGHUP under nohup, stays ignored."""
        for signum in SIGNALS:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, self._handle)

    @property
    def received(self) -> bool:
        """Whether a signal has arrived."""
        return self._received.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for a signal; returns whether one has arrived."""
        return self._received.wait(seconds)

    def check(self) -> None:
        """Raise `Stopped` if a signal has arrived. To be called between steps: Python drops an exception of a handler
        where it cannot be caught, as in the callbacks of a fork."""
        if self.received:
            raise Stopped

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Inside, a signal raises `Stopped` in the main thread."""
        self._interrupting = True
        try:
            self.check()
            yield
        except SystemExit:  # ray.init's own handler of SIGTERM
            self._received.set()
            raise Stopped from None
        finally:
            self._interrupting = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._received.is_set():
            os.write(2, b"stopped at once\n")
            os._exit(STOPPED_AT_ONCE)  # the kernel ends Ray's processes with this one
        self._received.set()
        if self._interrupting:
            raise Stopped
