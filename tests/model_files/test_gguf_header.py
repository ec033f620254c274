"""The header of a GGUF file: valid files of every kind, and the refusal of broken ones."""

from __future__ import annotations

import os
import struct
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.ggml_types import GGML_TYPES
from rbee_serve.model_files.gguf_header import GgufHeader, read_gguf_header
from rbee_serve.model_files.model_ref import PackageModel, parse_model_ref
from tests.conftest import DEFAULT_MODEL
from tests.model_files.tiny_models import ARCHITECTURE, MATRIX, NORM, array, gguf_bytes, metadata, text

u32, u64 = struct.Struct("<I").pack, struct.Struct("<Q").pack


def read(tmp_path: Path, content: bytes) -> GgufHeader:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return read_gguf_header(path)


@pytest.mark.parametrize("version", [2, 3])
def test_a_header_is_read(tmp_path: Path, version: int) -> None:
    entries = [
        ARCHITECTURE,
        metadata("a.float", 6, struct.pack("<f", 0.5)),
        metadata("a.bool", 7, b"\1"),
        metadata("some.numbers", 9, array(5, 3, struct.pack("<3i", -1, 0, 1))),
        metadata("some.texts", 9, array(8, 2, text("a") + text("b"))),
        metadata("many.numbers", 9, array(0, 5000, bytes(5000))),
        metadata("many.texts", 9, array(8, 5000, text("x") * 5000)),
    ]
    header = read(tmp_path, gguf_bytes(entries, version=version))
    assert header.metadata == {
        "general.architecture": "llama",
        "a.float": 0.5,
        "a.bool": True,
        "some.numbers": (-1, 0, 1),
        "some.texts": ("a", "b"),
    }
    assert (header.version, header.architecture, header.parameter_count, header.bytes_as(2)) == (
        version,
        "llama",
        68,
        136,
    )
    matrix, norm = header.tensors
    assert (matrix.name, matrix.dims, matrix.type.name, matrix.size_bytes) == ("blk.0.weight", (32, 2), "Q4_1", 40)
    assert norm.offset == header.data_offset + 64


def test_the_type_sizes_are_those_of_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf")
    expected = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {number: tuple(kind) for number, kind in GGML_TYPES.items()}.items() <= expected.items()


def test_a_file_written_by_the_gguf_package_is_read(tmp_path: Path) -> None:
    gguf, numpy = pytest.importorskip("gguf"), pytest.importorskip("numpy")
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_block_count(2)
    writer.add_array("tokenizer.ggml.tokens", [f"token {i}" for i in range(3000)])
    writer.add_tensor("token_embd.weight", numpy.ones((3, 5), dtype=numpy.float32))
    writer.add_tensor("output.weight", numpy.ones((3, 5), dtype=numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_gguf_header(tmp_path / "model.gguf")
    assert header.metadata["llama.block_count"] == 2
    assert [(tensor.name, tensor.dims, tensor.type.name) for tensor in header.tensors] == [
        ("token_embd.weight", (5, 3), "F32"),
        ("output.weight", (5, 3), "F16"),
    ]


def test_the_default_model_is_read_in_under_a_second() -> None:
    model = parse_model_ref(DEFAULT_MODEL)
    assert isinstance(model, PackageModel)
    if find_spec(model.package) is None:
        pytest.skip(f"{model.package} is not installed")
    began = time.monotonic()
    header = read_gguf_header(model.locate())
    assert time.monotonic() - began < 1
    assert (header.architecture, len(header.tensors), header.parameter_count) == ("llama", 272, 134_515_008)
    assert header.metadata["tokenizer.ggml.eos_token_id"] == 2


BROKEN = {
    "an empty file": (b"", "does not begin"),
    "a text file": (b"these are not the weights", "does not begin"),
    "version 1": (gguf_bytes(version=1), "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(60), "big-endian"),
    "69 bytes of ones": (b"GGUF" + u32(3) + b"\xff" * 61, "too many"),
    "69 bytes with a huge array": (
        (b"GGUF" + u32(3) + u64(0) + u64(1) + text("k") + u32(9) + u32(0) + u64(2**62)).ljust(69, b"\0"),
        "truncated",
    ),
    "69 bytes with many strings": (
        (b"GGUF" + u32(3) + u64(0) + u64(1) + text("k") + u32(9) + u32(8) + u64(2**40)).ljust(69, b"\0"),
        "more than the file can hold",
    ),
    "a string past the end": (b"GGUF" + u32(3) + u64(0) + u64(1) + text("k") + u32(8) + u64(2**63), "truncated"),
    "an array of arrays": (gguf_bytes([metadata("k", 9, array(9, 1, array(0, 1, b"\0")))]), "unknown type 9"),
    "an unknown value type": (gguf_bytes([metadata("k", 13, b"\0")]), "unknown type 13"),
    "no architecture": (gguf_bytes([]), "general.architecture"),
    "a duplicated key": (gguf_bytes([ARCHITECTURE, ARCHITECTURE]), "duplicated"),
    "a key that is not UTF-8": (gguf_bytes([metadata("k", 0, b"\0").replace(b"k", b"\xff")]), "not UTF-8"),
    "an alignment of 3": (gguf_bytes([ARCHITECTURE, metadata("general.alignment", 4, u32(3))]), "power of two"),
    "a duplicated tensor": (gguf_bytes(tensors=[MATRIX, (MATRIX[0], *NORM[1:])]), "duplicated"),
    "five dimensions": (gguf_bytes(tensors=[("w", (1,) * 5, 0, 0, bytes(4))]), "5 dimensions"),
    "no elements": (gguf_bytes(tensors=[("w", (4, 0), 0, 0, bytes(4))]), "do not fit"),
    "half a block": (gguf_bytes(tensors=[("w", (16, 4), 3, 0, bytes(40))]), "do not fit Q4_1"),
    "an unknown tensor type": (gguf_bytes(tensors=[("w", (4,), 4, 0, bytes(16))]), "unknown type 4"),
    "an offset between": (gguf_bytes(tensors=[("w", (4,), 0, 8, bytes(64))]), "multiple of 32"),
    "an offset far away": (gguf_bytes(tensors=[("w", (4,), 0, 2**63, bytes(64))]), "truncated"),
    "dims whose product is huge": (gguf_bytes(tensors=[("w", (2**63, 2**63), 0, 0, bytes(64))]), "truncated"),
    "overlapping tensors": (gguf_bytes(tensors=[MATRIX, ("w", (4,), 0, 32, bytes(16))]), "overlaps"),
    "one byte missing": (gguf_bytes(tensors=[("w", (8,), 0, 0, bytes(32))])[:-1], "truncated"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused_with_one_sentence_and_its_name(tmp_path: Path, kind: str) -> None:
    content, why = BROKEN[kind]
    with pytest.raises(ConfigurationError, match=why) as caught:
        read(tmp_path, content)
    assert "model.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_or_a_missing_file_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.gguf"):
        with pytest.raises(ConfigurationError, match="cannot be read"):
            read_gguf_header(path)


def test_a_file_with_a_billion_strings_is_refused_in_seconds(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + u32(3) + u64(0) + u64(1) + text("k") + u32(9) + u32(8) + u64(2**30))
    os.truncate(path, 2**34)  # sparse: 16 GiB of zeros, each 8 of which are an empty string
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match="strings"):
        read_gguf_header(path)
    assert time.monotonic() - began < 5


short = settings(max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])


@short
@given(st.binary(max_size=300))
def test_random_bytes_after_the_magic_are_refused(tmp_path: Path, noise: bytes) -> None:
    with pytest.raises(ConfigurationError):
        read(tmp_path, b"GGUF" + u32(3) + noise)


GOOD = gguf_bytes([ARCHITECTURE, metadata("many", 9, array(8, 3, text("x") * 3))], [("w", (8,), 0, 0, bytes(32))])


@short
@given(st.integers(0, len(GOOD) - 1))
def test_a_file_truncated_anywhere_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(ConfigurationError):
        read(tmp_path, GOOD[:length])


@short
@given(st.integers(0, len(GOOD) - 33), st.integers(0, 255))
def test_one_wrong_byte_is_refused_or_harmless(tmp_path: Path, index: int, byte: int) -> None:
    content = GOOD[:index] + bytes([byte]) + GOOD[index + 1 :]
    try:
        header = read(tmp_path, content)
    except ConfigurationError:
        return
    assert all(tensor.offset + tensor.size_bytes <= len(content) for tensor in header.tensors)
