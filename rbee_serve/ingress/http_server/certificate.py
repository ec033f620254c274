"""The certificate that is served, and again after it was renewed."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

from rbee_serve.errors import ConfigurationError

logger = logging.getLogger(__name__)

Stamp = list[tuple[int, int, int]]


class ServedCertificate:
    """The context for new connections. Open ones keep theirs."""

    def __init__(self, files: Sequence[Path], load: Callable[[], ssl.SSLContext]) -> None:
        """`load` reads `files`. Raises what it raises."""
        self._files = files
        self._load = load
        self._stamp = self._read_stamp()
        self._context = load()

    def context(self) -> ssl.SSLContext:
        """For the next connection."""
        return self._context

    def refresh(self) -> None:
        """Use the files again if they have changed. While they cannot be used, the last certificate stays in use."""
        stamp = self._read_stamp()
        if not stamp or stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._context = self._load()
        except ConfigurationError as exc:
            logger.warning("the last certificate stays in use: %s", exc)
        else:
            logger.info("the certificate in %s is in use", self._files[0])

    def _read_stamp(self) -> Stamp:
        try:
            stats = [file.stat() for file in self._files]
        except OSError:
            return []
        return [(stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in stats]
