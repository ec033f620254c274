"""The installed build of PyTorch, and the drivers that it works with."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from rbee_serve.torch_build import TorchBuild, driver_fault, installed_build

BUILDS = {
    "__version__ = '2.13.0+cpu'\ncuda = None\n": TorchBuild("2.13.0+cpu", None),
    "__version__ = '2.13.0'\ncuda: str | None = '13.0'\n": TorchBuild("2.13.0", (13, 0)),
    "__version__ = '2.9.1+cu128'\ncuda = '12.8'\n": TorchBuild("2.9.1+cu128", (12, 8)),
}


@pytest.mark.parametrize("versions", BUILDS)
def test_the_build_is_read_without_an_import(versions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('libcudart.so.13 is missing')\n")
    (package / "version.py").write_text(versions)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed_build() == BUILDS[versions]


def test_without_torch_there_is_no_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert installed_build() is None


@pytest.mark.parametrize("driver", [(13, 0), (13, 2), (14, 1)])
def test_a_driver_of_the_same_major_release_or_a_newer_one_is_enough(driver: tuple[int, int]) -> None:
    assert driver_fault((13, 0), driver) is None
    assert driver_fault((13, 2), driver) is None


def test_an_older_driver_is_a_sentence_with_the_driver_to_install() -> None:
    assert driver_fault((13, 0), (12, 4)) == (
        "NVIDIA's driver supports CUDA 12.4, and the installed PyTorch is built for CUDA 13.0; install a driver for "
        "CUDA 13 (580 or newer)"
    )
    assert str(driver_fault((15, 0), (13, 0))).endswith("install a driver for CUDA 15")
