"""The header of a safetensors file, read within bounds.

A model file is untrusted: every length and offset is checked against the real size of the file before anything is
allocated. Names must be unique, and the tensors must fill the file without gaps or overlaps, as
https://github.com/huggingface/safetensors#format demands.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbee_serve.errors import ConfigurationError

# The format allows 100 MB; a header of 100,000 tensors takes 15 MB.
MAX_HEADER_BYTES = 32 * 2**20

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits of one element, by the name of its type."""


@dataclass(frozen=True, slots=True)
class SafetensorsTensor:
    """One tensor: `offset` is in bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size_bytes: int

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """The header of a safetensors file; `metadata` is its free text."""

    path: Path
    metadata: Mapping[str, str]
    tensors: tuple[SafetensorsTensor, ...]
    file_bytes: int

    @property
    def parameter_count(self) -> int:
        """The elements of all tensors."""
        return sum(tensor.elements for tensor in self.tensors)


def read_safetensors_header(path: Path) -> SafetensorsHeader:
    """Read the header and check it. Raises `ConfigurationError` with the reason in one sentence."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise _error(path, f"its header would end after the file does at byte {size}")
            if length > MAX_HEADER_BYTES:
                raise _error(path, f"its header has {length} bytes; the maximum is {MAX_HEADER_BYTES}")
            raw = file.read(length)
    except OSError as exc:
        raise ConfigurationError(f"{path} cannot be read: {exc.strerror}") from exc
    entries = _entries(path, raw)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _error(path, "its __metadata__ is not a map of strings")
    tensors = tuple(_tensor(path, name, entry, 8 + length) for name, entry in entries.items())
    _check_layout(path, tensors, 8 + length, size)
    return SafetensorsHeader(path, metadata, tensors, size)


def _entries(path: Path, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            duplicate = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
            raise _error(path, f"{duplicate!r} is duplicated in its header")
        return entries

    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as exc:
        raise _error(path, "its header is not JSON") from exc
    if not isinstance(entries, dict):
        raise _error(path, "its header is not a map of tensors")
    return entries


def _tensor(path: Path, name: str, entry: Any, data_offset: int) -> SafetensorsTensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _error(path, f"the tensor {name!r} must have dtype, shape and data_offsets only")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in BITS:
        raise _error(path, f"the tensor {name!r} has an unknown type")
    if not _are_sizes(shape) or len(shape) > 64 or not _are_sizes(offsets) or len(offsets) != 2:
        raise _error(path, f"the tensor {name!r} has a shape or offsets that are not valid integers")
    begin, end = offsets
    if begin > end or math.prod(shape) * BITS[kind] != (end - begin) * 8:
        raise _error(path, f"the tensor {name!r} has offsets that do not fit its shape and type")
    return SafetensorsTensor(name, tuple(shape), kind, data_offset + begin, end - begin)


def _are_sizes(value: Any) -> bool:
    # More than any file holds, and small enough to multiply.
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**48 for number in value)


def _check_layout(path: Path, tensors: tuple[SafetensorsTensor, ...], data_offset: int, size: int) -> None:
    end = data_offset
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size_bytes)):
        if tensor.offset != end:
            raise _error(path, f"the tensor {tensor.name!r} overlaps another one or leaves a gap before it")
        end += tensor.size_bytes
    if end > size:
        raise _error(path, f"its tensors end at byte {end} but the file has {size}; it is truncated")
    if end < size:
        raise _error(path, f"{size - end} bytes follow its last tensor")


def _error(path: Path, what: str) -> ConfigurationError:
    return ConfigurationError(f"{path} is not a safetensors file that can be loaded: {what}")
