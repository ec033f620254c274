"""The temporary folder of one start: what Ray's processes, the replicas and their engines put into it is removed when
they have ended.

Libraries remove their temporary files when they end properly, and not when they are killed: vLLM leaves a dozen
sockets for each engine, Python's `multiprocessing` a folder. So every process of a start gets a folder of its own as
`TMPDIR`. The supervisor and its reaper hold a lock on it: a folder that nobody locks is left from a start of which
both were killed, and the next start removes it. Programs that clean the temporary folder by age, as systemd's does,
leave a locked one alone.
"""

from __future__ import annotations

import fcntl
import getpass
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rbee_serve.errors import ConfigurationError

PREFIX = "rbee-serve-"
"""Of the folder's name."""
SAFE_AGE_S = 60.0
"""An empty folder younger than this may be one that is not locked yet."""
MAX_PATH_BYTES = 107 - len("/rbee-12345678/") - 36
"""Of the folder. The path of a Unix socket has at most 107 bytes, and vLLM names its sockets by a UUID in a folder that
we make here."""
SHORT_FOLDER = "/tmp"  # noqa: S108 - `mkdtemp` makes a folder in it that no other user can enter
"""Where the folder is made if its path would be too long in the system's temporary folder."""


@dataclass(frozen=True, slots=True)
class TempFolder:
    """The folder, and the descriptor that holds its lock."""

    path: Path
    lock: int


def make_temp_folder(environ: MutableMapping[str, str]) -> TempFolder:
    """A new folder, which is `TMPDIR` in `environ` from now on; folders of starts that were killed are removed.

    What outlasts a start stays where it was: Ray's own folder with the logs, and the code that torch has compiled.
    Raises `ConfigurationError` where no folder can be made.
    """
    try:
        system = tempfile.gettempdir()
        path = _make(Path(system))
    except OSError as exc:
        raise ConfigurationError(
            f"no temporary folder can be made ({os.strerror(exc.errno or 0)}); set TMPDIR to a folder that can be "
            "written to and has space"
        ) from exc
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    with suppress(OSError):  # a file system without locks: nobody else can take one either
        fcntl.flock(lock, fcntl.LOCK_EX)
    environ.setdefault("RAY_TMPDIR", system)
    environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(system, f"torchinductor_{_user()}")))
    environ["TMPDIR"] = str(path)
    return TempFolder(path, lock)


def remove_stale(base: Path) -> None:
    """Remove this user's folders in `base` that nobody locks."""
    for folder in base.glob(f"{PREFIX}*"):
        with suppress(OSError), _opened(folder) as opened:  # no folder, another user's, or gone
            status = os.fstat(opened)
            is_young = time.time() - status.st_mtime < SAFE_AGE_S and not any(folder.iterdir())
            if status.st_uid == os.getuid() and not is_young:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def _make(base: Path) -> Path:
    if len(os.fsencode(base / f"{PREFIX}12345678")) > MAX_PATH_BYTES:
        with suppress(OSError):  # then a long path is better than none: most workers have no sockets
            remove_stale(Path(SHORT_FOLDER))
            return Path(tempfile.mkdtemp(prefix=PREFIX, dir=SHORT_FOLDER))
    remove_stale(base)
    return Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """A descriptor of a folder that is no link."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _user() -> str:
    """This user as torch names its folder."""
    try:
        name = getpass.getuser()
    except (KeyError, ImportError, OSError):
        name = f"uid_{os.getuid()}"
    return re.sub(r'[\\/:*?"<>|]', "_", name)
