"""Files that a configuration names and that are replaced while the server runs, such as secrets that rotate.

Only the path is configured: Ray shows the arguments of an application in its dashboard and keeps them in its store.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from rbee_serve.errors import ConfigurationError

logger = logging.getLogger(__name__)

MAX_TOKEN_BYTES = 8 * 1024
"""The longest token. Many HTTP servers refuse a header that is longer."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

FileVersion = tuple[int, ...]
ValueT = TypeVar("ValueT")


def read_file(path: Path, limit: int) -> bytes:
    """At most `limit` bytes from the beginning of a regular file. Raises `ConfigurationError`, which begins with the
    path, where the file cannot be read."""
    try:
        with open(path.expanduser(), "rb", opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigurationError(f"{path} is not a regular file; name one")
            return file.read(limit)
    except OSError as exc:
        raise ConfigurationError(f"{path} cannot be read: {exc.strerror}") from exc
    except (RuntimeError, ValueError):  # a home directory that is unknown, a NUL
        raise ConfigurationError(f"{str(path)!r} is not the path of a file") from None


def read_token(path: Path) -> bytes:
    """The token in the first line of the file, without surrounding blanks and a byte order mark.

    Raises `ConfigurationError`, which begins with the path, where there is none, or where it is longer than
    `MAX_TOKEN_BYTES`.
    """
    line = read_file(path, MAX_TOKEN_BYTES + 1).removeprefix(_BYTE_ORDER_MARK).split(b"\n", 1)[0].strip()
    if not line:
        raise ConfigurationError(f"the first line of {path} is empty; write a token there")
    if len(line) > MAX_TOKEN_BYTES:
        raise ConfigurationError(
            f"the first line of {path} is longer than {MAX_TOKEN_BYTES} bytes; write a token there"
        )
    return line


def file_version(path: Path) -> FileVersion:
    """Differs from before once the file has been changed or replaced. It is empty where there is no file."""
    try:
        status = path.expanduser().stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode


class WatchedFile(Generic[ValueT]):
    """The value of a file, loaded again when the file has changed.

    `load` raises `ConfigurationError` where the content is not usable. Then the last usable value stays, and the reason
    is logged, once for each change.
    """

    def __init__(self, path: Path, load: Callable[[Path], ValueT]) -> None:
        self.path = path
        self._load = load
        self._seen: FileVersion | None = None
        self._value: ValueT | None = None
        self._fault = ""

    def current(self) -> ValueT:
        """The value now. It costs one call of `stat`. Raises `ConfigurationError` where there has never been one."""
        found = self.version()
        if found != self._seen:
            self._seen = found
            self._reload()
        if self._value is None:
            raise ConfigurationError(self._fault)
        return self._value

    def version(self) -> FileVersion:
        """That of the file now."""
        return file_version(self.path)

    def _reload(self) -> None:
        try:
            self._value = self._load(self.path)
        except ConfigurationError as exc:
            self._fault = str(exc)
            if self._value is not None:
                logger.warning("%s; what it held before stays in use", exc)


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a named pipe without a writer would hang
