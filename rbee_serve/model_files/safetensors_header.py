"""The header of a safetensors file, read within bounds.

Every length and offset is held against the file's real size before anything is allocated, a name may be there once,
and the tensors must fill the file without holes or overlaps, as https://github.com/huggingface/safetensors#format
demands: a file that says something else is not what it claims to be.
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
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """All that a safetensors file says about itself; `metadata` is its free text."""

    path: Path
    metadata: Mapping[str, str]
    tensors: tuple[SafetensorsTensor, ...]
    file_bytes: int

    @property
    def parameter_count(self) -> int:
        """The numbers in all tensors together."""
        return sum(tensor.elements for tensor in self.tensors)


def read_safetensors_header(path: Path) -> SafetensorsHeader:
    """Read the header and check it. Raises `ConfigurationError` with one sentence that says what is wrong."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise _broken(path, f"its header would end after the end of the file at byte {size}")
            if length > MAX_HEADER_BYTES:
                raise _broken(path, f"its header claims {length} bytes; {MAX_HEADER_BYTES} is the most")
            raw = file.read(length)
    except OSError as exc:
        raise ConfigurationError(f"{path} cannot be read: {exc.strerror}") from exc
    entries = _entries(path, raw)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken(path, "its __metadata__ is not a map of texts")
    tensors = tuple(_tensor(path, name, entry, 8 + length) for name, entry in entries.items())
    _check_places(path, tensors, 8 + length, size)
    return SafetensorsHeader(path, metadata, tensors, size)


def _entries(path: Path, raw: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            doubled = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
            raise _broken(path, f"{doubled!r} is in its header twice")
        return entries

    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as exc:
        raise _broken(path, "its header is not JSON") from exc
    if not isinstance(entries, dict):
        raise _broken(path, "its header is not a map of tensors")
    return entries


def _tensor(path: Path, name: str, entry: Any, data_offset: int) -> SafetensorsTensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _broken(path, f"the tensor {name!r} does not say dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in BITS:
        raise _broken(path, f"the tensor {name!r} is of an unknown type")
    if not _whole_numbers(shape) or len(shape) > 64 or not _whole_numbers(offsets) or len(offsets) != 2:
        raise _broken(path, f"the tensor {name!r} has a shape or offsets that are not whole numbers")
    begin, end = offsets
    if begin > end or math.prod(shape) * BITS[kind] != (end - begin) * 8:
        raise _broken(path, f"the tensor {name!r} has offsets that do not fit its shape and type")
    return SafetensorsTensor(name, tuple(shape), kind, data_offset + begin, end - begin)


def _whole_numbers(value: Any) -> bool:
    # 2^48 elements are more than any file holds, and keep products small.
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**48 for number in value)


def _check_places(path: Path, tensors: tuple[SafetensorsTensor, ...], data_offset: int, size: int) -> None:
    end = data_offset
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size_bytes)):
        if tensor.offset != end:
            raise _broken(path, f"the tensor {tensor.name!r} overlaps another one or leaves a hole before it")
        end += tensor.size_bytes
    if end > size:
        raise _broken(path, f"its tensors end at byte {end} but the file has {size}; it is cut short")
    if end < size:
        raise _broken(path, f"{size - end} bytes follow its last tensor")


def _broken(path: Path, what: str) -> ConfigurationError:
    return ConfigurationError(f"{path} is not a safetensors file that can be loaded: {what}")
