"""The certificate that is served, and again after it was renewed."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

from rbee_serve.config.secret_file import FileVersion, file_version
from rbee_serve.errors import ConfigurationError

logger = logging.getLogger(__name__)


class ServedCertificate:
    """The context for new connections. Open ones keep theirs."""

    def __init__(self, files: Sequence[Path], load: Callable[[], ssl.SSLContext]) -> None:
        """`load` reads `files`. Raises what it raises."""
        self._files = files
        self._load = load
        self._seen = self._versions()
        self._context = load()

    def context(self) -> ssl.SSLContext:
        """For the next connection."""
        return self._context

    def refresh(self) -> None:
        """Use the files again if they have changed. While they cannot be used, the last certificate stays in use."""
        versions = self._versions()
        if versions == self._seen or () in versions:
            return
        self._seen = versions
        try:
            self._context = self._load()
        except ConfigurationError as exc:
            logger.warning("the last certificate stays in use: %s", exc)
        else:
            logger.info("the certificate in %s is in use", self._files[0])

    def _versions(self) -> list[FileVersion]:
        return [file_version(file) for file in self._files]
