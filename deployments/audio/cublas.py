"""cuBLAS for CTranslate2, which needs another release of it than PyTorch.

CTranslate2 opens `libcublas.so.12` by its name when it first multiplies on a GPU, so only where the system's loader
looks. The package `nvidia-cublas-cu12` of the extra `gpu` has it in a folder of its own. Once it is loaded from there,
the loader finds it by its name too.
"""

from __future__ import annotations

import ctypes
import importlib.metadata

from rbee_serve.errors import ConfigurationError

LIBRARIES = ("libcublasLt.so.12", "libcublas.so.12")
"""The second is what CTranslate2 opens (`tests/audio/test_cublas.py` reads the name in its library). It needs the
first, and would take one of the same name from `LD_LIBRARY_PATH` before that of its own folder."""
PACKAGE = "nvidia-cublas-cu12"


def load_cublas() -> None:
    """Load cuBLAS into this process, to be called before CTranslate2 is used on a GPU. Needs no driver.

    Raises `ConfigurationError` if neither the package nor the system has it.
    """
    installed = _in_package()
    try:
        for name in LIBRARIES:
            ctypes.CDLL(installed.get(name, name))
    except OSError as exc:
        raise ConfigurationError(
            f"CTranslate2 needs {LIBRARIES[-1]} on a GPU, which cannot be loaded; pip install {PACKAGE}, or use a "
            "Whisper in safetensors with engine: {name: transformers}"
        ) from exc


def _in_package() -> dict[str, str]:
    """The paths of the package's libraries by name; none if it is not installed."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    return {file.name: str(file.locate()) for file in files if file.name in LIBRARIES}
