"""The conversion of a GGUF file and its cache, with a fast writer in place of the real one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from rbee_serve.errors import ConfigurationError, InsufficientResources
from rbee_serve.model_files.gguf_conversion import converted_gguf, default_cache_dir
from rbee_serve.model_files.gguf_header import GgufHeader
from rbee_serve.state import LoadProgress
from tests.model_files.tiny_models import ARCHITECTURE, gguf_bytes, metadata, model_folder

WRITER = "rbee_serve.model_files.gguf_to_transformers.write_transformers_model"


class TinyWriter:
    """Writes a model folder in milliseconds and counts its calls."""

    def __init__(self, seconds: float = 0, error: Exception | None = None) -> None:
        self.calls, self.seconds, self.error = 0, seconds, error

    def __call__(self, header: GgufHeader, folder: Path, dtype: str, report: Callable[[LoadProgress], None]) -> None:
        self.calls += 1
        model_folder(folder)
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_bytes())
    return path


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> TinyWriter:
    tiny = TinyWriter()
    monkeypatch.setattr(WRITER, tiny)
    return tiny


def ignored(progress: LoadProgress) -> None:
    """Ignore the progress."""


def test_a_file_is_converted_once(gguf: Path, tmp_path: Path, writer: TinyWriter) -> None:
    first = converted_gguf(gguf, ignored, cache_dir=tmp_path / "cache")
    assert first == converted_gguf(gguf, ignored, cache_dir=tmp_path / "cache")
    assert (first.parent, first.name.startswith("tiny-float32-"), writer.calls) == (tmp_path / "cache", True, 1)


def test_another_dtype_modification_time_or_content_is_converted_again(
    gguf: Path, tmp_path: Path, writer: TinyWriter
) -> None:
    folders = {
        converted_gguf(gguf, ignored, cache_dir=tmp_path),
        converted_gguf(gguf, ignored, cache_dir=tmp_path, dtype="bfloat16"),
    }
    os.utime(gguf, (1, 1))
    folders.add(converted_gguf(gguf, ignored, cache_dir=tmp_path))
    gguf.write_bytes(gguf_bytes([ARCHITECTURE, metadata("a", 0, b"\1")]))
    os.utime(gguf, (1, 1))
    folders.add(converted_gguf(gguf, ignored, cache_dir=tmp_path))
    assert (len(folders), writer.calls) == (4, 4)


@pytest.mark.parametrize("damaged", ["model.safetensors", "config.json"])
def test_a_damaged_conversion_is_repeated(gguf: Path, tmp_path: Path, writer: TinyWriter, damaged: str) -> None:
    folder = converted_gguf(gguf, ignored, cache_dir=tmp_path)
    if damaged == "config.json":
        (folder / damaged).unlink()
    else:
        os.truncate(folder / damaged, 90)
    assert converted_gguf(gguf, ignored, cache_dir=tmp_path) == folder
    assert writer.calls == 2
    assert converted_gguf(gguf, ignored, cache_dir=tmp_path) == folder
    assert writer.calls == 2


def test_concurrent_conversions_of_one_file_wait_for_the_first(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = TinyWriter(seconds=0.3)
    monkeypatch.setattr(WRITER, slow)
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(converted_gguf(gguf, ignored, cache_dir=tmp_path)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert (len(folders), len(set(folders)), slow.calls) == (4, 1, 1)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ValueError("a message of another library"), ConfigurationError),
        (MemoryError(), InsufficientResources),
        (OSError(28, "No space left on device"), InsufficientResources),
        (PermissionError(13, "Permission denied"), ConfigurationError),
    ],
)
def test_a_failed_conversion_leaves_no_files_and_names_the_model(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[Exception]
) -> None:
    monkeypatch.setattr(WRITER, TinyWriter(error=raised))
    with pytest.raises(expected, match=r"tiny\.gguf") as caught:
        converted_gguf(gguf, ignored, cache_dir=tmp_path / "cache")
    assert "another library" not in str(caught.value)
    assert [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []


def test_files_of_a_killed_conversion_are_removed(gguf: Path, tmp_path: Path, writer: TinyWriter) -> None:
    folder = converted_gguf(gguf, ignored, cache_dir=tmp_path)
    partial = folder.rename(folder.with_name(f".{folder.name}.partial"))
    assert converted_gguf(gguf, ignored, cache_dir=tmp_path) == folder
    assert not partial.exists()


def test_a_model_larger_than_the_free_disk_is_refused_with_numbers(tmp_path: Path, writer: TinyWriter) -> None:
    rows = 2**30 // 256
    path = tmp_path / "huge.gguf"
    # 1-bit weights: sparse files of a few hundred GB that would become many TB.
    path.write_bytes(gguf_bytes(tensors=[("w", (256, rows * 16_000), 19, 0, b"")]))
    os.truncate(path, path.stat().st_size + rows * 16_000 * 50)
    with pytest.raises(InsufficientResources, match=r"becomes 68,719,477 MB of float32, but the disk .* has only"):
        converted_gguf(path, ignored, cache_dir=tmp_path / "cache")
    assert writer.calls == 0


def test_a_model_larger_than_the_free_memory_is_refused_with_numbers(
    gguf: Path, tmp_path: Path, writer: TinyWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = psutil.virtual_memory()._replace(available=1_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with pytest.raises(InsufficientResources, match=r"only 1 MB of memory are free and the conversion needs 134 MB"):
        converted_gguf(gguf, ignored, cache_dir=tmp_path)
    assert writer.calls == 0


def test_a_part_of_a_split_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny-00001-of-00002.gguf"
    path.write_bytes(gguf_bytes([ARCHITECTURE, metadata("split.count", 2, b"\2\0")]))
    with pytest.raises(ConfigurationError, match="one part of a split GGUF"):
        converted_gguf(path, ignored, cache_dir=tmp_path)


def test_a_cache_that_cannot_be_written_is_reported(gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot hold the converted"):
        converted_gguf(gguf, ignored, cache_dir=tmp_path / "file" / "cache")


def test_the_cache_follows_the_xdg_specification(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "rbee-serve" / "models"
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert default_cache_dir() == Path.home() / ".cache" / "rbee-serve" / "models"


def test_a_second_call_imports_no_model_library(gguf: Path, tmp_path: Path, writer: TinyWriter) -> None:
    folder = converted_gguf(gguf, ignored, cache_dir=tmp_path)
    program = f"""
import sys
from pathlib import Path
from rbee_serve.model_files.resolve import prepare
print(prepare("file:{gguf}", print, cache_dir=Path("{tmp_path}")))
print({{"torch", "transformers", "gguf", "numpy", "huggingface_hub"}} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.split("\n") == [str(folder), "set()", ""], done.stderr
