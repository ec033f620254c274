"""The temporary folder of one start: what Ray's processes, the replicas and their engines put into it is removed when
they have ended.

Libraries remove their temporary files when they end properly, and not when they are killed: vLLM leaves a dozen
sockets for each engine, Python's `multiprocessing` a folder. So every process of a start gets a folder of its own as
`TMPDIR`. Its lock is held by the supervisor and its reaper: a folder that nobody locks is left from a start of which
both were killed, and the next start removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PREFIX = "rbee-serve-"
"""Of the folder's name."""
LOCK = "lock"
"""The file in it that is locked."""
SAFE_AGE_S = 60.0
"""A folder younger than this may be one that is not locked yet."""
MAX_PATH_BYTES = 107 - len("/rbee-12345678/") - 36
"""Of the folder. The path of a Unix socket has at most 107 bytes, and vLLM names its sockets by a UUID in a folder that
we make here."""


@dataclass(frozen=True, slots=True)
class TempFolder:
    """The folder, and the descriptor that holds its lock."""

    path: Path
    lock: int


def make_temp_folder(environ: MutableMapping[str, str]) -> TempFolder:
    """A new folder, which is `TMPDIR` in `environ` from now on; folders of starts that were killed are removed.

    Ray's own folder stays where it was: it has the logs.
    """
    system = tempfile.gettempdir()
    base = Path(system)
    if len(os.fsencode(base / f"{PREFIX}12345678")) > MAX_PATH_BYTES:
        base = Path("/tmp")  # noqa: S108 - `mkdtemp` makes a folder that no other user can enter
    remove_stale(base)
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    lock = os.open(path / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    environ.setdefault("RAY_TMPDIR", system)
    environ["TMPDIR"] = str(path)
    return TempFolder(path, lock)


def remove_stale(base: Path) -> None:
    """Remove the folders in `base` that nobody locks."""
    for lock_file in base.glob(f"{PREFIX}*/{LOCK}"):
        with suppress(OSError):  # another user's, or somebody else removes it now
            if time.time() - lock_file.stat().st_mtime > SAFE_AGE_S and not _is_locked(lock_file):
                shutil.rmtree(lock_file.parent, ignore_errors=True)


def _is_locked(lock_file: Path) -> bool:
    with lock_file.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
