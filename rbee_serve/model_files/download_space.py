"""The disk space of downloads that run at the same time: each one counts what the others have still to fetch.

Every download has a file with that number beside the cache, and holds a lock on it. The lock ends with its process, so
the number of a process that died does not count.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rbee_serve.errors import InsufficientResources

FOLDER = ".locks/rbee-serve-downloads"
"""Within the cache. huggingface_hub keeps its own locks in `.locks`, and takes anything else there for a model."""

_DIGITS = 20
REMEDY = "free disk space, or set HF_HOME to another disk"


@contextmanager
def reserved_space(cache: Path, repo: str, needed: int) -> Iterator[Callable[[int], None]]:
    """Reserve `needed` bytes of the disk of `cache` for the download of `repo` while the block runs.

    Gives a function that takes the bytes that are still to be fetched. Replicas of one model fetch it once, so they
    count once. Raises `InsufficientResources` with the numbers if the disk is too small, `OSError` if the cache cannot
    be written.
    """
    folder = cache / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / f"{os.getpid()}-{uuid.uuid4().hex}"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        others = _others(folder)
        needed = min(needed, others.pop(repo, needed))
        _require(cache, repo, needed, sum(others.values()))
        file = own.open("wb", buffering=0)
        fcntl.flock(file, fcntl.LOCK_EX)
        _write(file.fileno(), repo, needed)
    try:
        yield lambda count: _write(file.fileno(), repo, count)
    finally:
        own.unlink(missing_ok=True)
        file.close()


def disk_full(cache: Path, repo: str, needed: int) -> InsufficientResources:
    """The error for a disk that ran full while `needed` bytes were still to be fetched."""
    return InsufficientResources(
        f"hf:{repo} filled the disk of {cache}: {_mb(needed)} were still to be fetched, and now {_mb(_free(cache))} are"
        f" free; {REMEDY}"
    )


def _require(cache: Path, repo: str, needed: int, others: int) -> None:
    free = _free(cache)
    if not needed or free >= needed + others:
        return
    claimed = f", and other downloads need {_mb(others)} of them" if others else ""
    raise InsufficientResources(
        f"hf:{repo} needs {_mb(needed)} more, but the disk of {cache} has only {_mb(free)} free{claimed}; {REMEDY}"
    )


def _write(entry: int, repo: str, needed: int) -> None:
    os.pwrite(entry, f"{needed:0{_DIGITS}d}{repo}".encode(), 0)


def _others(folder: Path) -> dict[str, int]:
    """The bytes that each model that is being downloaded still needs."""
    found: dict[str, int] = {}
    for path in folder.glob("*-*"):
        with suppress(FileNotFoundError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                content = file.read().decode()
                repo, count = content[_DIGITS:], int(content[:_DIGITS])
                found[repo] = min(count, found.get(repo, count))
            else:
                path.unlink()  # its process died
    return found


def _free(cache: Path) -> int:
    return shutil.disk_usage(cache).free


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
