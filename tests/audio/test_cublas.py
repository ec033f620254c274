"""cuBLAS 12 for CTranslate2 beside the cuBLAS 13 of PyTorch."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from deployments.audio import cublas, faster_whisper_engine
from deployments.audio.transcription_engine import WindowProgress
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.worker.spec import Device, LoadContext
from rbee_serve.worker.watchdog import Watchdog
from scripts.install import REQUIREMENTS, read_pins

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ctranslate2") is None, reason="ctranslate2 is not installed")


def bundled_libraries() -> list[Path]:
    """The libraries in the package of CTranslate2, which no folder of the system has."""
    files = distribution("ctranslate2").files or []
    return [Path(str(file.locate())) for file in files if ".so" in file.name and ".libs" in str(file)]


def test_the_cublas_that_ctranslate2_opens_is_the_one_that_is_loaded_and_pinned() -> None:
    found = {name for path in bundled_libraries() for name in re.findall(rb"libcublas\.so\.\d+", path.read_bytes())}
    assert found == {cublas.LIBRARIES[-1].encode()}
    release = cublas.LIBRARIES[-1].rpartition(".")[2]
    assert cublas.PACKAGE.removeprefix("nvidia-cublas-cu") == release
    assert read_pins(REQUIREMENTS / "constraints-gpu.txt")[cublas.PACKAGE].startswith(f"{release}.")


def test_a_library_that_is_loaded_from_its_package_is_then_found_by_its_name() -> None:
    """With a library that exists here in place of cuBLAS, in a process that has loaded nothing yet."""
    path = next(path for path in bundled_libraries() if path.name.startswith("libgomp"))
    program = f"""
import ctypes
from deployments.audio import cublas
cublas.LIBRARIES = ({path.name!r},)
try:
    cublas.load_cublas()
except Exception as exc:
    print(type(exc).__name__)
cublas._in_package = lambda: {{{path.name!r}: {str(path)!r}}}
cublas.load_cublas()
ctypes.CDLL({path.name!r})
print("found")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.split(), done.returncode) == (["ConfigurationError", "found"], 0), done.stderr


def test_a_transcription_worker_on_a_gpu_without_it_is_refused_in_a_sentence_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cublas, "LIBRARIES", ("libcublas.so.0",))
    worker = WorkerConfig(id="transcribe-0", type="audio", gpus=1, model_ref="hf:nobody/nothing")
    context = LoadContext(worker, Device("cuda"), lambda progress: None)
    sentence = r"^CTranslate2 needs libcublas\.so\.0 .*; pip install nvidia-cublas-cu12"
    with pytest.raises(ConfigurationError, match=sentence):
        faster_whisper_engine.load(context, faster_whisper_engine.Options(), WindowProgress(Watchdog(1)))
