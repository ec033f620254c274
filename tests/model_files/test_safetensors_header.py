"""The header of a safetensors file: valid files, and the refusal of broken ones."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.safetensors_header import SafetensorsHeader, read_safetensors_header
from tests.model_files.tiny_models import GOOD_SAFETENSORS, entry, safetensors_bytes


def read(tmp_path: Path, content: bytes) -> SafetensorsHeader:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return read_safetensors_header(path)


def test_a_header_is_read(tmp_path: Path) -> None:
    header = read(tmp_path, GOOD_SAFETENSORS)
    assert header.metadata == {"format": "pt"}
    assert [(tensor.name, tensor.shape, tensor.type, tensor.size_bytes) for tensor in header.tensors] == [
        ("w", (2, 2), "F32", 16),
        ("b", (2,), "BF16", 4),
    ]
    assert (header.parameter_count, header.file_bytes) == (6, len(GOOD_SAFETENSORS))


def test_a_file_written_by_the_safetensors_package_is_read(tmp_path: Path) -> None:
    numpy_files, numpy = pytest.importorskip("safetensors.numpy"), pytest.importorskip("numpy")
    arrays = {"a": numpy.ones((3, 5)), "scalar": numpy.array(1.5), "none": numpy.ones((0, 4), numpy.int8)}
    numpy_files.save_file(arrays, tmp_path / "model.safetensors")
    header = read_safetensors_header(tmp_path / "model.safetensors")
    assert {tensor.name: tensor.shape for tensor in header.tensors} == {"a": (3, 5), "scalar": (), "none": (0, 4)}


BROKEN = {
    "an empty file": (b"", "after the file does"),
    "seven bytes": (bytes(7), "after the file does"),
    "a text file": (b"these are not the weights", "after the file does"),
    "a pickle": (b"\x80\x02}q\x00." * 20, "after the file does"),
    "a header longer than the file": (struct.pack("<Q", 2**63) + b"{}", "after the file does"),
    "not JSON": (safetensors_bytes("{]"), "not JSON"),
    "not UTF-8": (safetensors_bytes("{}x").replace(b"x", b"\xff"), "not JSON"),
    "JSON nested deeply": (safetensors_bytes("[" * 100_000), "not JSON"),
    "an integer of 5,000 digits": (safetensors_bytes('{"w":' + "9" * 5000 + "}"), "not JSON"),
    "a list": (safetensors_bytes("[]"), "not a map"),
    "a duplicated name": (safetensors_bytes('{"w": 1, "w": 2}'), "'w' is duplicated"),
    "metadata that is not a string": (safetensors_bytes({"__metadata__": {"a": 1}}), "__metadata__"),
    "an unknown key": (safetensors_bytes({"w": {**entry(), "x": 1}}, bytes(16)), "must have dtype"),
    "an unknown type": (safetensors_bytes({"w": entry(dtype="F33")}, bytes(16)), "unknown type"),
    "a negative length": (safetensors_bytes({"w": entry(shape=(-2, -2))}, bytes(16)), "valid integers"),
    "a fraction": (safetensors_bytes({"w": {**entry(), "data_offsets": [0, 16.0]}}, bytes(16)), "valid integers"),
    "a boolean": (safetensors_bytes({"w": {**entry(), "data_offsets": [False, 16]}}, bytes(16)), "valid integers"),
    "three offsets": (safetensors_bytes({"w": {**entry(), "data_offsets": [0, 8, 16]}}, bytes(16)), "valid integers"),
    "offsets that do not fit": (safetensors_bytes({"w": entry(0, 12)}, bytes(12)), "do not fit"),
    "offsets in reverse": (safetensors_bytes({"w": entry(16, 0)}, bytes(16)), "do not fit"),
    "an overlap": (safetensors_bytes({"a": entry(), "b": entry(8, 24)}, bytes(24)), "overlaps"),
    "a gap": (safetensors_bytes({"a": entry(), "b": entry(20, 36)}, bytes(36)), "gap"),
    "one byte missing": (GOOD_SAFETENSORS[:-1], "truncated"),
    "one byte extra": (GOOD_SAFETENSORS + b"\0", "1 bytes follow"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused_with_one_sentence_and_its_name(tmp_path: Path, kind: str) -> None:
    content, why = BROKEN[kind]
    with pytest.raises(ConfigurationError, match=why) as caught:
        read(tmp_path, content)
    assert "model.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_oversized_header_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**33))
        file.truncate(2**34)
    with pytest.raises(ConfigurationError, match="the maximum is"):
        read_safetensors_header(path)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_safetensors_header(tmp_path / "missing.safetensors")


short = settings(max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])


@short
@given(st.binary(max_size=300))
def test_random_bytes_are_refused(tmp_path: Path, noise: bytes) -> None:
    with pytest.raises(ConfigurationError):
        read(tmp_path, b"\1" + noise)


@short
@given(st.integers(0, len(GOOD_SAFETENSORS) - 1))
def test_a_file_truncated_anywhere_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(ConfigurationError):
        read(tmp_path, GOOD_SAFETENSORS[:length])


@short
@given(st.integers(0, len(GOOD_SAFETENSORS) - 21), st.integers(0, 255))
def test_one_wrong_byte_is_refused_or_harmless(tmp_path: Path, index: int, byte: int) -> None:
    content = GOOD_SAFETENSORS[:index] + bytes([byte]) + GOOD_SAFETENSORS[index + 1 :]
    try:
        header = read(tmp_path, content)
    except ConfigurationError:
        return
    assert all(tensor.offset + tensor.size_bytes <= len(content) for tensor in header.tensors)
