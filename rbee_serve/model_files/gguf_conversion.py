"""The conversion of a GGUF file to a folder that vLLM and transformers load.

A GGUF is dequantised: a 4-bit file takes the memory of its float form, two or four bytes per parameter, and is no
faster. vLLM has no GGUF loader. Where memory counts, use the safetensors form of a model, quantised in a way that vLLM
supports.

The conversion takes seconds to minutes, so the folder is kept in a cache under a fingerprint of the file. It appears
there complete or not at all, and concurrent processes wait for the first one. A second call imports neither torch nor
transformers.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import psutil

from rbee_serve.errors import ConfigurationError, InsufficientResources
from rbee_serve.model_files.gguf_header import GgufHeader, read_gguf_header
from rbee_serve.model_files.safetensors_header import read_safetensors_header
from rbee_serve.state import LoadProgress

logger = logging.getLogger(__name__)

FloatType = Literal["float32", "bfloat16", "float16"]
"""The type of the dequantised weights."""

ELEMENT_BYTES: dict[FloatType, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one element."""

FORMAT_VERSION = 1
"""Part of every name in the cache: raised when the conversion changes."""

SPARE_BYTES = 128 * 2**20
"""Left free in addition to the weights: for the tokenizer, the libraries and other processes."""


def default_cache_dir() -> Path:
    """The cache of converted models: `rbee-serve/models` in the user's cache directory as defined by XDG."""
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG base directory specification says to ignore a relative path.
    return (configured if configured.is_absolute() else Path.home() / ".cache") / "rbee-serve" / "models"


def converted_gguf(
    path: Path,
    report: Callable[[LoadProgress], None],
    *,
    cache_dir: Path | None = None,
    dtype: FloatType = "float32",
) -> Path:
    """The folder with the converted model of a GGUF file; converts it if the cache does not have it.

    `report` gets the stage `converting` after each tensor, with the dequantised bytes done and in total. Raises
    `ConfigurationError` for a file that cannot be loaded, `InsufficientResources` if disk or memory is too small.
    """
    header = read_gguf_header(path)
    if header.metadata.get("split.count", 1) != 1:
        raise ConfigurationError(f"{path} is one part of a split GGUF; join the parts with llama-gguf-split --merge")
    cache = default_cache_dir() if cache_dir is None else cache_dir
    folder = cache / f"{path.stem}-{dtype}-{_fingerprint(header)}"
    if _is_complete(folder):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache / f".{folder.name}.lock"):
            if not _is_complete(folder):  # no other process converted it meanwhile
                _convert(header, folder, dtype, report)
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InsufficientResources(f"the disk of {cache} ran full during the conversion of {path.name}") from exc
        raise ConfigurationError(f"{cache} cannot hold the converted {path.name}: {exc.strerror}") from exc
    return folder


def _fingerprint(header: GgufHeader) -> str:
    """Identifies the file without reading all of it: by size, modification time and header."""
    status = header.path.stat()
    digest = hashlib.sha256(f"{FORMAT_VERSION} {status.st_size} {status.st_mtime_ns} ".encode())
    with header.path.open("rb") as file:
        digest.update(file.read(header.data_offset))
    return digest.hexdigest()[:16]


def _is_complete(folder: Path) -> bool:
    """Whether the folder has a finished conversion with weights of the right length."""
    if not (folder / "config.json").is_file():
        return False
    try:
        return bool([read_safetensors_header(weights) for weights in folder.glob("*.safetensors")])
    except ConfigurationError:
        return False


def _convert(header: GgufHeader, folder: Path, dtype: FloatType, report: Callable[[LoadProgress], None]) -> None:
    _check_space(header, folder.parent, dtype)
    # This process holds the lock, so these are left over from a process that died.
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir()
    # Imported here, because torch takes seconds and a cached model does not need it.
    from rbee_serve.model_files.gguf_to_transformers import write_transformers_model

    logger.info("converting %s to %s in %s", header.path, dtype, folder)
    try:
        write_transformers_model(header, partial, dtype, report)
        partial.rename(folder)
    except (OSError, ConfigurationError, InsufficientResources):
        raise
    except MemoryError as exc:
        raise InsufficientResources(f"memory ran out during the conversion of {header.path.name} to {dtype}") from exc
    except Exception as exc:
        logger.exception("%s could not be converted", header.path)
        raise ConfigurationError(
            f"{header.path} is a GGUF of the architecture {header.architecture}, which could not be converted (see the"
            " log); use the safetensors form of the model"
        ) from exc
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_space(header: GgufHeader, cache: Path, dtype: FloatType) -> None:
    weights = header.bytes_as(ELEMENT_BYTES[dtype])
    max_elements = max((tensor.elements for tensor in header.tensors), default=0)
    prefix = f"{header.path.name} ({_mb(header.file_bytes)}) becomes {_mb(weights)} of {dtype}"
    free = shutil.disk_usage(cache).free
    if free < weights + SPARE_BYTES:
        raise InsufficientResources(
            f"{prefix}, but the disk of {cache} has only {_mb(free)} free and {_mb(weights + SPARE_BYTES)} are needed;"
            " free disk space, or set XDG_CACHE_HOME to another disk"
        )
    # One tensor at a time is held as float32 twice, in addition to all finished ones.
    needed, available = weights + 8 * max_elements + SPARE_BYTES, psutil.virtual_memory().available
    if available < needed:
        raise InsufficientResources(
            f"{prefix}, but only {_mb(available)} of memory are free and the conversion needs {_mb(needed)}"
        )


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a file lock across processes and threads. The file stays: removing it would be a race."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
