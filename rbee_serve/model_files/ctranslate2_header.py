"""The header of a CTranslate2 model, `model.bin`, read within bounds.

The file has a pickle's name but is none: it has a version, the name of the model's layout, and variables with name,
shape, type and bytes. A model file is untrusted: every length is checked against the real size of the file before
anything is allocated or skipped. The format is that of `ModelSpec._serialize` in
https://github.com/OpenNMT/CTranslate2/blob/master/python/ctranslate2/specs/model_spec.py.
"""

from __future__ import annotations

import math
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rbee_serve.errors import ConfigurationError

VERSIONS = range(4, 7)
"""The versions with a type for each variable."""
MAX_VARIABLES = 65_536
MAX_DIMENSIONS = 8

_ELEMENT_BYTES = (4, 1, 2, 4, 2, 2)
"""By type: float32, int8, int16, int32, float16, bfloat16."""
_LAYOUT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True, slots=True)
class CTranslate2Header:
    """The header of a CTranslate2 model. `layout` is the kind of the model, such as `WhisperSpec`."""

    version: int
    layout: str
    revision: int
    variables: int
    weights_bytes: int


def read_ctranslate2_header(path: Path) -> CTranslate2Header:
    """Read the header and check it. Raises `ConfigurationError` with the reason in one sentence."""
    try:
        with path.open("rb") as file:
            return _Reader(path, file).read()
    except OSError as exc:
        raise ConfigurationError(f"{path} cannot be read: {exc.strerror}") from exc


class _Reader:
    """A cursor that never moves past the end of the file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._size = os.fstat(file.fileno()).st_size

    def read(self) -> CTranslate2Header:
        version = self._unsigned("I")
        layout = self._string() if version in VERSIONS else ""
        if not _LAYOUT_NAME.fullmatch(layout):
            raise ConfigurationError(
                f"{self._path} is not a CTranslate2 model of version {VERSIONS[0]} to {VERSIONS[-1]}, so it may be a "
                "pickle, which can run code when it is read; it is never loaded"
            )
        revision = self._unsigned("I")
        names = {self._variable() for _ in range(self._count())}
        weights_bytes = self._file.tell()
        for _ in range(self._count()):
            self._string()  # an alias of a variable
            if (variable := self._string()) not in names:
                raise self._error(f"it has an alias of {variable!r}, which is missing")
        if (extra := self._size - self._file.tell()) > 0:
            raise self._error(f"{extra} bytes follow its end")
        return CTranslate2Header(version, layout, revision, len(names), weights_bytes)

    def _variable(self) -> str:
        name = self._string()
        dimensions = self._unsigned("B")
        if dimensions > MAX_DIMENSIONS:
            raise self._error(f"{name!r} has {dimensions} dimensions; the maximum is {MAX_DIMENSIONS}")
        shape = struct.unpack(f"<{dimensions}I", self._take(4 * dimensions))
        kind, size = self._unsigned("B"), self._unsigned("I")
        if kind >= len(_ELEMENT_BYTES) or math.prod(shape) * _ELEMENT_BYTES[kind] != size:
            raise self._error(f"{name!r} has a size that does not fit its shape and type")
        self._check_remaining(size)
        self._file.seek(size, os.SEEK_CUR)
        return name

    def _count(self) -> int:
        count = self._unsigned("I")
        if count > MAX_VARIABLES:
            raise self._error(f"it has {count} variables; the maximum is {MAX_VARIABLES}")
        return count

    def _unsigned(self, kind: str) -> int:
        return int(struct.unpack(f"<{kind}", self._take(struct.calcsize(f"<{kind}")))[0])

    def _string(self) -> str:
        return self._take(self._unsigned("H")).removesuffix(b"\0").decode("utf-8", errors="replace")

    def _take(self, count: int) -> bytes:
        self._check_remaining(count)
        return self._file.read(count)

    def _check_remaining(self, count: int) -> None:
        if count > self._size - self._file.tell():
            raise self._error(f"its content does not end before the file does at byte {self._size}; it is truncated")

    def _error(self, what: str) -> ConfigurationError:
        return ConfigurationError(f"{self._path} is not a CTranslate2 model that can be loaded: {what}")
