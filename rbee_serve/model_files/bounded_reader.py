"""A cursor in an untrusted model file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, ClassVar, Self

from rbee_serve.errors import ConfigurationError


class BoundedReader:
    """Reads little-endian values, and checks every length against the size of the file before it allocates or skips."""

    kind: ClassVar[str]
    """The kind of file, for error messages, such as `GGUF file`."""
    max_bytes: ClassVar[int | None] = None
    """The maximum position of the cursor, if it is less than the size of the file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.size = os.fstat(file.fileno()).st_size
        self.position = 0
        self._file = file

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> Iterator[Self]:
        """A reader at the start of a file. Raises `ConfigurationError` if the file cannot be opened or read."""
        try:
            with path.open("rb") as file:
                yield cls(path, file)
        except OSError as exc:
            raise ConfigurationError(f"{path} cannot be read: {exc.strerror}") from exc

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        self._advance(count)
        data = self._file.read(count)
        if len(data) != count:
            raise self.error("it was truncated while it was read")
        return data

    def skip(self, count: int) -> None:
        """Move `count` bytes on."""
        self._advance(count)
        self._file.seek(count, os.SEEK_CUR)

    def unsigned(self, count: int) -> int:
        """The next `count` bytes as an unsigned integer."""
        return int.from_bytes(self.take(count), "little")

    def error(self, reason: str) -> ConfigurationError:
        """The refusal of the file."""
        return ConfigurationError(f"{self.path} is not a {self.kind} that can be loaded: {reason}")

    def _advance(self, count: int) -> None:
        if count > self.size - self.position:
            raise self.error(f"its content does not end before the file does at byte {self.size}; it is truncated")
        self.position += count
        if self.max_bytes is not None and self.position > self.max_bytes:
            raise self.error(f"its header is larger than {self.max_bytes} bytes")
