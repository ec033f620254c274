"""The last line that a child process has written to its standard error.

A library that ends its process writes the reason there and nowhere else: C++ the exception that was not caught, the C
library what it found corrupted, Python a traceback.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress

from rbee_serve.worker.engine_failure import shortened

CHUNK_BYTES = 64 * 1024
KEPT_BYTES = 8 * 1024
JOIN_TIMEOUT_S = 1.0
"""A process that outlives the child may hold the pipe open; its words are not waited for."""


class StderrTail:
    """A pipe for a child's standard error. All that comes goes on to this process's own standard error."""

    def __init__(self) -> None:
        self._reader, self.descriptor = os.pipe()
        """`descriptor` is the end for the child."""
        self._kept = b""
        self._thread = threading.Thread(target=self._copy, name="stderr-tail", daemon=True)

    def start(self) -> None:
        """Begin to read. To be called when the child has been started."""
        os.close(self.descriptor)
        self._thread.start()

    def last_line(self) -> str:
        """The last line that is not blank, shortened; empty if there is none. To be called when the child has exited.
        Blocks, at most `JOIN_TIMEOUT_S` seconds."""
        self._thread.join(JOIN_TIMEOUT_S)
        lines = self._kept.decode(errors="replace").splitlines()
        return next((shortened(line) for line in reversed(lines) if line.strip()), "")

    def _copy(self) -> None:
        with os.fdopen(self._reader, "rb", buffering=0) as reader:
            while data := reader.read(CHUNK_BYTES):
                self._kept = (self._kept + data)[-KEPT_BYTES:]
                with suppress(OSError):
                    os.write(2, data)
