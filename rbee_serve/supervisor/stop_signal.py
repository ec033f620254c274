"""SIGTERM, SIGINT and SIGHUP: the first asks to stop, a second one stops at once."""

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
    """A signal came during something that cannot be waited for. Like KeyboardInterrupt, nobody should swallow it."""


class StopSignal:
    """Remembers that a signal came. Make and use it in the main thread."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._interrupting = False

    def install(self) -> None:
        """Take the signals. Call it again after `ray.init`, which takes SIGTERM for itself. A signal that is ignored,
        as SIGHUP under nohup, stays so."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._take)

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self._asked.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for a signal; whether one came."""
        return self._asked.wait(seconds)

    def check(self) -> None:
        """Raise `Stopped` if a signal came. To be called between steps: Python drops what a handler raises where nobody
        could catch it, as in the callbacks of a fork."""
        if self.asked:
            raise Stopped

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Inside, a signal raises `Stopped` where the main thread stands."""
        self._interrupting = True
        try:
            self.check()
            yield
        except SystemExit:  # ray.init's own handler of SIGTERM
            self._asked.set()
            raise Stopped from None
        finally:
            self._interrupting = False

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._asked.is_set():
            os.write(2, b"stopped at once\n")
            os._exit(STOPPED_AT_ONCE)  # the kernel ends Ray's processes with ours
        self._asked.set()
        if self._interrupting:
            raise Stopped
