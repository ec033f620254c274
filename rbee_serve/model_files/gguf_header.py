"""The header of a GGUF file, read within bounds.

A model file is untrusted: every count, length, type, size and offset is checked against the real size of the file
before anything is allocated or skipped, so a tiny, truncated or random file gives one error message and never a hang.
The layout is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian; the sizes of
the tensor types are in `ggml_types`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.bounded_reader import BoundedReader
from rbee_serve.model_files.ggml_types import GGML_TYPES, GgmlType

MetadataValue = int | float | bool | str | tuple[int | float | bool | str, ...]

# Well above the largest vocabularies, and small enough to read in seconds.
MAX_HEADER_BYTES = 256 * 2**20
MAX_METADATA_ENTRIES = 4096
MAX_TENSORS = 65_536
MAX_STRINGS = 4_000_000
MAX_NAME_BYTES = 65_535
MAX_DIMENSIONS = 4
MAX_KEPT_ELEMENTS = 1024

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: `dims` in elements, the fastest-varying first; `offset` in bytes from the start of the file."""

    name: str
    dims: tuple[int, ...]
    type: GgmlType
    offset: int
    size_bytes: int

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.dims)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The header of a GGUF file. `metadata` lacks arrays of more than 1,024 elements (vocabularies): they are checked
    but not kept."""

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
        """The elements of all tensors."""
        return sum(tensor.elements for tensor in self.tensors)

    def bytes_as(self, element_bytes: int) -> int:
        """Bytes of all tensors when dequantised to `element_bytes` bytes per element."""
        return self.parameter_count * element_bytes


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the header and check it. Raises `ConfigurationError` with the reason in one sentence."""
    with _Reader.opened(path) as reader:
        return reader.read()


class _Reader(BoundedReader):
    kind = "GGUF file"
    max_bytes = MAX_HEADER_BYTES
    _strings = 0
    """Strings in arrays so far."""

    def read(self) -> GgufHeader:
        version, tensor_count, metadata_count = self._preamble()
        metadata: dict[str, MetadataValue] = {}
        keys: set[str] = set()
        for _ in range(metadata_count):
            key = self._name("a metadata key")
            if key in keys:
                raise self.error(f"the metadata key {key!r} is duplicated")
            keys.add(key)
            value = self._value(self.unsigned(4), key)
            if value is not None:
                metadata[key] = value
        if not isinstance(metadata.get("general.architecture"), str):
            raise self.error("it has no general.architecture")
        raw = [self._tensor_info() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= 2**20 or alignment & (alignment - 1):
            raise self.error(f"general.alignment {alignment!r} is not a power of two from 8 to 1048576")
        data_offset = -(-self.position // alignment) * alignment
        tensors = tuple(self._tensor(tensor, data_offset, alignment) for tensor in raw)
        self._check_overlaps(tensors)
        return GgufHeader(self.path, version, metadata, tensors, data_offset, self.size)

    def _preamble(self) -> tuple[int, int, int]:
        if self.size < 4 or self.take(4) != b"GGUF":
            raise ConfigurationError(f"{self.path} is not a GGUF file: it does not begin with GGUF")
        version = self.unsigned(4)
        if version in (2 << 24, 3 << 24):
            raise self.error("it is big-endian; convert it to little-endian")
        if version not in (2, 3):
            raise self.error(f"it has version {version}; supported are 2 and 3")
        tensor_count, metadata_count = self.unsigned(8), self.unsigned(8)
        if tensor_count > MAX_TENSORS or metadata_count > MAX_METADATA_ENTRIES:
            raise self.error(f"it claims {tensor_count} tensors and {metadata_count} metadata entries, too many")
        return version, tensor_count, metadata_count

    def _value(self, kind: int, key: str) -> MetadataValue | None:
        """A metadata value, or None for an array that is not kept."""
        if kind == _STRING:
            return self._string().decode("utf-8", errors="replace")
        if kind == _ARRAY:
            return self._array(self.unsigned(4), self.unsigned(8), key)
        return self._scalar(kind, key)

    def _array(self, kind: int, count: int, key: str) -> MetadataValue | None:
        if kind == _STRING:
            self._strings += count
            # Reading each length is the only slow part of a header.
            if self._strings > MAX_STRINGS or count * 8 > self.size - self.position:
                raise self.error(f"the array {key!r} claims {count} strings, more than the file can hold")
            if count <= MAX_KEPT_ELEMENTS:
                return tuple(self._string().decode("utf-8", errors="replace") for _ in range(count))
            for _ in range(count):
                self.skip(self.unsigned(8))
            return None
        if kind not in _SCALARS:
            raise self.error(f"the array {key!r} has elements of the unknown type {kind}")
        size = count * struct.calcsize(f"<{_SCALARS[kind]}")
        if count <= MAX_KEPT_ELEMENTS:
            return struct.unpack(f"<{count}{_SCALARS[kind]}", self.take(size))
        self.skip(size)
        return None

    def _scalar(self, kind: int, key: str) -> int | float | bool:
        layout = _SCALARS.get(kind)
        if layout is None:
            raise self.error(f"the metadata {key!r} has the unknown type {kind}")
        value: int | float | bool = struct.unpack(f"<{layout}", self.take(struct.calcsize(f"<{layout}")))[0]
        return value

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._name("a tensor name")
        dimensions = self.unsigned(4)
        if dimensions > MAX_DIMENSIONS:
            raise self.error(f"the tensor {name!r} claims {dimensions} dimensions; the maximum is {MAX_DIMENSIONS}")
        dims = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions))
        return name, dims, self.unsigned(4), self.unsigned(8)

    def _tensor(self, raw: tuple[str, tuple[int, ...], int, int], data_offset: int, alignment: int) -> GgufTensor:
        name, dims, type_id, offset = raw
        kind = GGML_TYPES.get(type_id)
        if kind is None:
            raise self.error(f"the tensor {name!r} has the unknown type {type_id}")
        row, elements = (dims[0] if dims else 1), math.prod(dims)
        if not elements or row % kind.block_elements:
            raise self.error(f"the tensor {name!r} has dimensions {list(dims)}, which do not fit {kind.name}")
        size = elements // kind.block_elements * kind.block_bytes
        if offset % alignment:
            raise self.error(f"the tensor {name!r} begins at {offset}, which is not a multiple of {alignment}")
        if data_offset + offset + size > self.size:
            end = data_offset + offset + size
            raise self.error(f"the tensor {name!r} ends at byte {end} but the file has {self.size}; it is truncated")
        return GgufTensor(name, dims, kind, data_offset + offset, size)

    def _check_overlaps(self, tensors: tuple[GgufTensor, ...]) -> None:
        names: set[str] = set()
        end = 0
        for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
            if tensor.name in names:
                raise self.error(f"the tensor {tensor.name!r} is duplicated")
            if tensor.offset < end:
                raise self.error(f"the tensor {tensor.name!r} overlaps another one")
            names.add(tensor.name)
            end = tensor.offset + tensor.size_bytes

    def _string(self) -> bytes:
        return self.take(self.unsigned(8))

    def _name(self, what: str) -> str:
        length = self.unsigned(8)
        if not 0 < length <= MAX_NAME_BYTES:
            raise self.error(f"{what} has an invalid length of {length} bytes")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as exc:
            raise self.error(f"{what} is not UTF-8") from exc
