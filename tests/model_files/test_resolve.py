"""From a `model_ref` to a local folder: formats, refusals and checks."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.resolve import ModelFiles, prepare, resolve, weights_bytes
from rbee_serve.state import LoadProgress
from tests.model_files.tiny_models import GOOD_SAFETENSORS, ctranslate2_bytes, gguf_bytes, model_folder


def ignored(progress: LoadProgress) -> None:
    """Ignore the progress."""


def test_a_folder_of_safetensors_is_used_unchanged(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    assert resolve(f"file:{folder}", ignored) == ModelFiles(folder, "safetensors", len(GOOD_SAFETENSORS))
    assert prepare(f"file:{folder}", ignored) == folder
    assert weights_bytes(folder) == weights_bytes(folder / "model.safetensors") == len(GOOD_SAFETENSORS)


def test_the_weights_of_a_pipeline_are_in_subfolders(tmp_path: Path) -> None:
    model_folder(tmp_path / "unet")
    model_folder(tmp_path / "vae")
    assert resolve(f"file:{tmp_path}", ignored).bytes_on_disk == 2 * len(GOOD_SAFETENSORS)


def test_a_gguf_is_found_by_name_or_as_the_only_one_in_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes())
    found = ModelFiles(path, "gguf", len(gguf_bytes()))
    assert resolve(f"file:{path}", ignored) == resolve(f"file:{tmp_path}", ignored) == found
    (tmp_path / "other.gguf").touch()
    with pytest.raises(ConfigurationError, match="has 2 GGUF files"):
        resolve(f"file:{tmp_path}", ignored)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.pkl", "unet/model.ckpt"])
def test_pickles_are_refused_by_folder_and_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\x80\x02}q\x00.")
    for ref in (f"file:{tmp_path}", f"file:{path}"):
        with pytest.raises(ConfigurationError, match="may be a pickle"):
            prepare(ref, ignored)


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf", "model.bin"])
def test_a_pickle_with_another_name_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02}q\x00." * 20)
    with pytest.raises(ConfigurationError, match=name):
        prepare(f"file:{tmp_path}", ignored, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "why"),
    [("README.md", "neither a folder"), ("model.safetensors", "use its folder")],
)
def test_a_file_that_is_not_a_model_is_refused(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / name).write_bytes(b"text")
    with pytest.raises(ConfigurationError, match=why):
        resolve(f"file:{tmp_path / name}", ignored)


def test_a_ctranslate2_model_is_for_engines_with_that_format(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(ctranslate2_bytes())
    assert resolve(f"file:{tmp_path}", ignored) == ModelFiles(tmp_path, "ctranslate2", len(ctranslate2_bytes()))
    assert prepare(f"file:{tmp_path}", ignored, formats=["ctranslate2"]) == tmp_path
    with pytest.raises(ConfigurationError, match="is a ctranslate2 model; this engine takes safetensors or gguf"):
        prepare(f"file:{tmp_path}", ignored)
    model_folder(tmp_path / "other")
    with pytest.raises(ConfigurationError, match="is a safetensors model; this engine takes ctranslate2"):
        prepare(f"file:{tmp_path / 'other'}", ignored, formats=["ctranslate2"])


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="has no weights"):
        resolve(f"file:{tmp_path}", ignored)


def test_every_weights_file_is_checked(tmp_path: Path) -> None:
    model_folder(tmp_path)
    (tmp_path / "model-2.safetensors").write_bytes(GOOD_SAFETENSORS[:-1])
    with pytest.raises(ConfigurationError, match=r"model-2\.safetensors .* truncated"):
        prepare(f"file:{tmp_path}", ignored)


@pytest.mark.parametrize("shard", ["model-00002-of-00002.safetensors", "../model.safetensors"])
def test_a_missing_shard_of_the_index_is_refused(tmp_path: Path, shard: str) -> None:
    folder = model_folder(tmp_path / "model")
    model_folder(tmp_path)
    index = {"weight_map": {"a": "model.safetensors", "b": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigurationError, match="is missing"):
        prepare(f"file:{folder}", ignored)


@pytest.mark.parametrize("content", ["[1]", "{", "\xff", "[" * 100_000, '{"weight_map": 1}'])
def test_a_broken_index_is_refused(tmp_path: Path, content: str) -> None:
    model_folder(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(content, encoding="latin-1")
    with pytest.raises(ConfigurationError, match=r"index\.json"):
        prepare(f"file:{tmp_path}", ignored)


def test_code_in_a_model_is_logged_and_not_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model_folder(tmp_path, config='{"auto_map": {"AutoModel": "modeling.Model"}}')
    (tmp_path / "modeling.py").write_text("raise RuntimeError('run')")
    with caplog.at_level(logging.WARNING):
        assert prepare(f"file:{tmp_path}", ignored) == tmp_path
    assert "contains code" in caplog.text
