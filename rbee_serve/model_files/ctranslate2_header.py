"""The header of a CTranslate2 model, `model.bin`, read within bounds.

The file has a pickle's name but is none: it has a version, the name of the model's layout, and variables with name,
shape, type and bytes. A model file is untrusted: every length is checked against the real size of the file before
anything is allocated or skipped. The format is that of `ModelSpec._serialize` in
https://github.com/OpenNMT/CTranslate2/blob/master/python/ctranslate2/specs/model_spec.py.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.bounded_reader import BoundedReader

VERSIONS = range(4, 7)
"""The versions with a type for each variable."""
MAX_VARIABLES = 65_536
MAX_DIMENSIONS = 8

_ELEMENT_BYTES = (4, 1, 2, 4, 2, 2)
"""By type: float32, int8, int16, int32, float16, bfloat16."""
_LAYOUT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True, slots=True)
class CTranslate2Header:
    """The header of a CTranslate2 model. `layout` is the kind of the model, such as `WhisperSpec`. `matrix_elements`
    are the numbers in weights of two dimensions, which CTranslate2 can quantise, and `other_elements` all others."""

    version: int
    layout: str
    revision: int
    variables: int
    weights_bytes: int
    matrix_elements: int
    other_elements: int


def read_ctranslate2_header(path: Path) -> CTranslate2Header:
    """Read the header and check it. Raises `ConfigurationError` with the reason in one sentence."""
    with _Reader.opened(path) as reader:
        return reader.read()


class _Reader(BoundedReader):
    kind = "CTranslate2 model"

    def read(self) -> CTranslate2Header:
        version = self.unsigned(4)
        layout = self._string() if version in VERSIONS else ""
        if not _LAYOUT_NAME.fullmatch(layout):
            raise ConfigurationError(
                f"{self.path} is not a CTranslate2 model of version {VERSIONS[0]} to {VERSIONS[-1]}, so it may be a "
                "pickle, which can run code when it is read; it is never loaded"
            )
        revision = self.unsigned(4)
        shapes = dict(self._variable() for _ in range(self._count()))
        weights_bytes = self.position
        for _ in range(self._count()):
            self._string()  # an alias of a variable
            if (variable := self._string()) not in shapes:
                raise self.error(f"it has an alias of {variable!r}, which is missing")
        if (extra := self.size - self.position) > 0:
            raise self.error(f"{extra} bytes follow its end")
        matrix_elements = sum(math.prod(shape) for shape in shapes.values() if len(shape) == 2)
        other_elements = sum(math.prod(shape) for shape in shapes.values()) - matrix_elements
        return CTranslate2Header(version, layout, revision, len(shapes), weights_bytes, matrix_elements, other_elements)

    def _variable(self) -> tuple[str, tuple[int, ...]]:
        name = self._string()
        dimensions = self.unsigned(1)
        if dimensions > MAX_DIMENSIONS:
            raise self.error(f"{name!r} has {dimensions} dimensions; the maximum is {MAX_DIMENSIONS}")
        shape = struct.unpack(f"<{dimensions}I", self.take(4 * dimensions))
        kind, size = self.unsigned(1), self.unsigned(4)
        if kind >= len(_ELEMENT_BYTES) or math.prod(shape) * _ELEMENT_BYTES[kind] != size:
            raise self.error(f"{name!r} has a size that does not fit its shape and type")
        self.skip(size)
        return name, shape

    def _count(self) -> int:
        count = self.unsigned(4)
        if count > MAX_VARIABLES:
            raise self.error(f"it has {count} variables; the maximum is {MAX_VARIABLES}")
        return count

    def _string(self) -> str:
        return self.take(self.unsigned(2)).removesuffix(b"\0").decode("utf-8", errors="replace")
