"""The header of a GGUF file, read within bounds.

A model file is input like any other: every count, length, type, size and offset is held against the file's real size
before anything is allocated or skipped, so a file of 69 bytes, a truncated or a random one ends in one sentence and
never in a hang. The layout is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3,
little-endian; what the tensors weigh is in `ggml_types`.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.ggml_types import GGML_TYPES, GgmlType

MetadataValue = int | float | bool | str | tuple[int | float | bool | str, ...]

# Well over what the largest vocabularies need, and little enough to be read in seconds.
MAX_HEADER_BYTES = 256 * 2**20
MAX_METADATA = 4096
MAX_TENSORS = 65_536
MAX_STRINGS = 4_000_000
MAX_NAME_BYTES = 65_535
MAX_DIMENSIONS = 4
KEPT_ELEMENTS = 1024

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: `dims` are in elements, the fastest-moving first; `offset` is in bytes from the start of the file."""

    name: str
    dims: tuple[int, ...]
    type: GgmlType
    offset: int
    size_bytes: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.dims)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """All that a GGUF file says about itself. Arrays of more than 1,024 elements (vocabularies) are checked but not
    kept, so `metadata` lacks them."""

    path: Path
    version: int
    metadata: Mapping[str, MetadataValue]
    tensors: tuple[GgufTensor, ...]
    data_offset: int
    """Bytes before the first tensor."""
    file_bytes: int

    @property
    def architecture(self) -> str:
        """The model family, such as `llama`."""
        return str(self.metadata["general.architecture"])

    @property
    def parameter_count(self) -> int:
        """The numbers in all tensors together."""
        return sum(tensor.elements for tensor in self.tensors)

    def bytes_as(self, element_bytes: int) -> int:
        """Bytes of all tensors when dequantised to numbers of `element_bytes` bytes each."""
        return self.parameter_count * element_bytes


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the header and check it. Raises `ConfigurationError` with one sentence that says what is wrong."""
    try:
        with path.open("rb") as file:
            return _Reader(path, file).read()
    except OSError as exc:
        raise ConfigurationError(f"{path} cannot be read: {exc.strerror}") from exc


class _Reader:
    """A cursor that never moves past the end of the file or of the longest header that makes sense."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file, self._at, self._strings = path, file, 0, 0
        self._size = os.fstat(file.fileno()).st_size

    def read(self) -> GgufHeader:
        version, tensor_count, metadata_count = self._preamble()
        metadata: dict[str, MetadataValue] = {}
        keys: set[str] = set()
        for _ in range(metadata_count):
            key = self._name("a metadata key")
            if key in keys:
                raise self._broken(f"the metadata key {key!r} is there twice")
            keys.add(key)
            value = self._value(self._uint32(), key)
            if value is not None:
                metadata[key] = value
        if not isinstance(metadata.get("general.architecture"), str):
            raise self._broken("it does not say general.architecture")
        raw = [self._tensor_info() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= 2**20 or alignment & (alignment - 1):
            raise self._broken(f"general.alignment {alignment!r} is not a power of two from 8 to 1048576")
        data_offset = -(-self._at // alignment) * alignment
        tensors = tuple(self._placed(tensor, data_offset, alignment) for tensor in raw)
        self._check_places(tensors)
        return GgufHeader(self._path, version, metadata, tensors, data_offset, self._size)

    def _preamble(self) -> tuple[int, int, int]:
        if self._file.read(4) != b"GGUF":
            raise ConfigurationError(f"{self._path} is not a GGUF file: it does not begin with the letters GGUF")
        self._at = 4
        version = self._uint32()
        if version in (2 << 24, 3 << 24):
            raise self._broken("it is big-endian; convert it to little-endian")
        if version not in (2, 3):
            raise self._broken(f"it is of version {version}; versions 2 and 3 can be read")
        tensor_count, metadata_count = self._uint64(), self._uint64()
        if tensor_count > MAX_TENSORS or metadata_count > MAX_METADATA:
            raise self._broken(f"it claims {tensor_count} tensors and {metadata_count} metadata entries, far too many")
        return version, tensor_count, metadata_count

    def _value(self, kind: int, key: str) -> MetadataValue | None:
        """A metadata value, or None for an array that is not kept."""
        if kind == _STRING:
            return self._string().decode("utf-8", errors="replace")
        if kind == _ARRAY:
            return self._array(self._uint32(), self._uint64(), key)
        return self._scalar(kind, key)

    def _array(self, kind: int, count: int, key: str) -> MetadataValue | None:
        if kind == _STRING:
            self._strings += count
            # Each has to be walked over, which is the only part of a header that costs time.
            if self._strings > MAX_STRINGS or count * 8 > self._size - self._at:
                raise self._broken(f"the array {key!r} claims {count} strings, more than the file can hold")
            if count <= KEPT_ELEMENTS:
                return tuple(self._string().decode("utf-8", errors="replace") for _ in range(count))
            for _ in range(count):
                self._skip(self._uint64())
            return None
        if kind not in _SCALARS:
            raise self._broken(f"the array {key!r} has elements of the unknown type {kind}")
        size = count * struct.calcsize(f"<{_SCALARS[kind]}")
        if count <= KEPT_ELEMENTS:
            return struct.unpack(f"<{count}{_SCALARS[kind]}", self._take(size))
        self._skip(size)
        return None

    def _scalar(self, kind: int, key: str) -> int | float | bool:
        layout = _SCALARS.get(kind)
        if layout is None:
            raise self._broken(f"the metadata {key!r} is of the unknown type {kind}")
        value: int | float | bool = struct.unpack(f"<{layout}", self._take(struct.calcsize(f"<{layout}")))[0]
        return value

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._name("a tensor name")
        dimensions = self._uint32()
        if dimensions > MAX_DIMENSIONS:
            raise self._broken(f"the tensor {name!r} claims {dimensions} dimensions; {MAX_DIMENSIONS} is the most")
        dims = struct.unpack(f"<{dimensions}Q", self._take(8 * dimensions))
        return name, dims, self._uint32(), self._uint64()

    def _placed(self, raw: tuple[str, tuple[int, ...], int, int], data_offset: int, alignment: int) -> GgufTensor:
        name, dims, type_id, offset = raw
        kind = GGML_TYPES.get(type_id)
        if kind is None:
            raise self._broken(f"the tensor {name!r} is of the unknown type {type_id}")
        row, elements = (dims[0] if dims else 1), math.prod(dims)
        if not elements or row % kind.block_elements:
            raise self._broken(f"the tensor {name!r} has dimensions {list(dims)}, which {kind.name} cannot hold")
        size = elements // kind.block_elements * kind.block_bytes
        if offset % alignment:
            raise self._broken(f"the tensor {name!r} begins at {offset}, which is not a multiple of {alignment}")
        if data_offset + offset + size > self._size:
            end = data_offset + offset + size
            raise self._broken(f"the tensor {name!r} ends at byte {end} but the file at {self._size}; it is cut short")
        return GgufTensor(name, dims, kind, data_offset + offset, size)

    def _check_places(self, tensors: tuple[GgufTensor, ...]) -> None:
        names: set[str] = set()
        end = 0
        for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
            if tensor.name in names:
                raise self._broken(f"the tensor {tensor.name!r} is there twice")
            if tensor.offset < end:
                raise self._broken(f"the tensor {tensor.name!r} overlaps another one")
            names.add(tensor.name)
            end = tensor.offset + tensor.size_bytes

    def _uint32(self) -> int:
        return int.from_bytes(self._take(4), "little")

    def _uint64(self) -> int:
        return int.from_bytes(self._take(8), "little")

    def _string(self) -> bytes:
        return self._take(self._uint64())

    def _name(self, what: str) -> str:
        length = self._uint64()
        if not 0 < length <= MAX_NAME_BYTES:
            raise self._broken(f"{what} claims to be {length} bytes long")
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError as exc:
            raise self._broken(f"{what} is not text") from exc

    def _take(self, count: int) -> bytes:
        self._advance(count)
        data = self._file.read(count)
        if len(data) != count:
            raise self._broken("it became shorter while it was read")
        return data

    def _skip(self, count: int) -> None:
        self._advance(count)
        self._file.seek(count, os.SEEK_CUR)

    def _advance(self, count: int) -> None:
        if count > self._size - self._at:
            raise self._broken(f"its header goes on after the end of the file at byte {self._size}; it is cut short")
        self._at += count
        if self._at > MAX_HEADER_BYTES:
            raise self._broken(f"its header is longer than {MAX_HEADER_BYTES} bytes")

    def _broken(self, what: str) -> ConfigurationError:
        return ConfigurationError(f"{self._path} is not a GGUF file that can be loaded: {what}")
