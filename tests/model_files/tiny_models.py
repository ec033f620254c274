"""Real model files of a few bytes, written by hand, so that tests can corrupt every byte."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Tensor = tuple[str, tuple[int, ...], int, int, bytes]
"""Name, dims, ggml type, offset, data."""


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def metadata(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + values


ARCHITECTURE = metadata("general.architecture", 8, text("llama"))
MATRIX: Tensor = ("blk.0.weight", (32, 2), 3, 0, bytes(40))  # Q4_1: 20 bytes for 32 numbers
NORM: Tensor = ("norm.weight", (4,), 0, 64, struct.pack("<4f", 1, 2, 3, 4))


def gguf_bytes(
    entries: Sequence[bytes] = (ARCHITECTURE,), tensors: Sequence[Tensor] = (MATRIX, NORM), version: int = 3
) -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries)) + b"".join(entries)
    for name, dims, kind, offset, _ in tensors:
        header += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    data = b"".join(blob.ljust(-(-len(blob) // 32) * 32, b"\0") for *_, blob in tensors)
    return header.ljust(-(-len(header) // 32) * 32, b"\0") + data


def safetensors_bytes(header: str | Mapping[str, Any], data: bytes = b"") -> bytes:
    encoded = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def entry(begin: int = 0, end: int = 16, shape: Sequence[int] = (2, 2), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


GOOD_SAFETENSORS = safetensors_bytes(
    {"__metadata__": {"format": "pt"}, "w": entry(), "b": entry(16, 20, (2,), "BF16")}, bytes(20)
)


def model_folder(folder: Path, config: str = "{}") -> Path:
    """A folder with the files of a safetensors model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").write_bytes(GOOD_SAFETENSORS)
    return folder


def ctranslate2_bytes(
    version: int = 6,
    layout: bytes = b"TinySpec\0",
    dims: tuple[int, ...] = (2, 3),
    kind: int = 4,
    alias: str = "weight",
) -> bytes:
    """A CTranslate2 model with one variable, `weight`, and one alias of it."""

    def text(value: bytes) -> bytes:
        return struct.pack("<H", len(value)) + value

    data = bytes(math.prod(dims) * 2)
    shape = struct.pack(f"<B{len(dims)}I", len(dims), *dims)
    variable = text(b"weight\0") + shape + struct.pack("<BI", kind, len(data)) + data
    names = struct.pack("<I", 1) + text(b"projection\0") + text(alias.encode() + b"\0")
    return struct.pack("<I", version) + text(layout) + struct.pack("<II", 3, 1) + variable + names
