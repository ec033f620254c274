"""A GGUF file as a folder that vLLM and transformers load, made once and kept.

vLLM has no GGUF loader, so the weights are dequantised to safetensors beside a config and a tokenizer. That takes
seconds to minutes, so the folder stays in a cache under a name made of what the file is. It appears there whole or not
at all, and processes that want the same one wait for the first. A second call neither imports torch nor transformers.
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
"""The type that dequantised numbers are kept in."""

ELEMENT_BYTES: dict[FloatType, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one number of that type."""

FORMAT_VERSION = 1
"""Part of every name in the cache: raised when the same GGUF is to be converted differently."""

SPARE_BYTES = 128 * 2**20
"""Left free beyond what the weights take: the tokenizer, the libraries, and other people's work."""


def default_cache_dir() -> Path:
    """Where converted models are kept: `rbee-serve/models` in the user's cache directory, as XDG defines it."""
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
    """The folder with the model of a GGUF file, converted now if it has not been before.

    `report` is told `converting` with the dequantised bytes done and in all, tensor by tensor. Raises
    `ConfigurationError` for a file that cannot be loaded, `InsufficientResources` where disk or memory is too small.
    """
    header = read_gguf_header(path)
    if header.metadata.get("split.count", 1) != 1:
        raise ConfigurationError(f"{path} is one part of a split GGUF; join the parts with llama-gguf-split --merge")
    cache = default_cache_dir() if cache_dir is None else cache_dir
    folder = cache / f"{path.stem}-{dtype}-{_fingerprint(header)}"
    if _is_whole(folder):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache / f".{folder.name}.lock"):
            if not _is_whole(folder):  # nobody made it while we waited
                _convert(header, folder, dtype, report)
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InsufficientResources(f"the disk of {cache} became full while {path.name} was converted") from exc
        raise ConfigurationError(f"{cache} cannot hold the converted {path.name}: {exc.strerror}") from exc
    return folder


def _fingerprint(header: GgufHeader) -> str:
    """What the file is, without reading gigabytes: its size, its time of change and its header."""
    status = header.path.stat()
    digest = hashlib.sha256(f"{FORMAT_VERSION} {status.st_size} {status.st_mtime_ns} ".encode())
    with header.path.open("rb") as file:
        digest.update(file.read(header.data_offset))
    return digest.hexdigest()[:16]


def _is_whole(folder: Path) -> bool:
    """Whether a finished conversion is there and its weights have the length that they should."""
    if not (folder / "config.json").is_file():
        return False
    try:
        return bool([read_safetensors_header(weights) for weights in folder.glob("*.safetensors")])
    except ConfigurationError:
        return False


def _convert(header: GgufHeader, folder: Path, dtype: FloatType, report: Callable[[LoadProgress], None]) -> None:
    _check_room(header, folder.parent, dtype)
    # The lock is ours, so what lies there is left from a process that died.
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir()
    # Imported late: a model that is in the cache must not cost the seconds that torch takes.
    from rbee_serve.model_files.gguf_to_transformers import write_transformers_model

    logger.info("converting %s to %s in %s", header.path, dtype, folder)
    try:
        write_transformers_model(header, partial, dtype, report)
        partial.rename(folder)
    except (OSError, ConfigurationError, InsufficientResources):
        raise
    except MemoryError as exc:
        raise InsufficientResources(f"memory ran out while {header.path.name} was converted to {dtype}") from exc
    except Exception as exc:
        logger.exception("%s could not be converted", header.path)
        raise ConfigurationError(
            f"{header.path} is a GGUF of the architecture {header.architecture}, which could not be converted (the log"
            " says why); use the safetensors form of the model"
        ) from exc
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_room(header: GgufHeader, cache: Path, dtype: FloatType) -> None:
    weights = header.bytes_as(ELEMENT_BYTES[dtype])
    largest = max((tensor.elements for tensor in header.tensors), default=0)
    becomes = f"{header.path.name} ({_mb(header.file_bytes)}) becomes {_mb(weights)} of {dtype}"
    free = shutil.disk_usage(cache).free
    if free < weights + SPARE_BYTES:
        raise InsufficientResources(
            f"{becomes}, but the disk of {cache} has only {_mb(free)} free and {_mb(weights + SPARE_BYTES)} are needed;"
            " free some, or let XDG_CACHE_HOME name another disk"
        )
    # One tensor at a time is held as float32 twice, beside all the finished ones.
    needed, available = weights + 8 * largest + SPARE_BYTES, psutil.virtual_memory().available
    if available < needed:
        raise InsufficientResources(
            f"{becomes}, but only {_mb(available)} of memory are free and {_mb(needed)} are needed to convert it"
        )


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a file that other processes and threads wait for. It is left behind: removing it would be a race."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
