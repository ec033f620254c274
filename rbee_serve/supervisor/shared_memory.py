"""The files in `/dev/shm` that processes leave when they are killed: vLLM's message queue of 240 MiB, and semaphores.

They have random names, so the process that made one is known only while it runs, by its memory map. The maps are read
when the folder has changed, and compared by inode: the C library renames a semaphore after mapping it. A file of
another name may be a model that the operator keeps in memory: it stays, as does what was there before the start.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

FOLDER = Path("/dev/shm")  # noqa: S108 - the kernel's
PREFIXES = ("psm_", "sem.")
"""Of the names that Python's `multiprocessing`, and what builds on it, gives to segments and semaphores."""


class SharedMemory:
    """The files that some processes have mapped, and the processes of each."""

    def __init__(self, made_after: float, folder: Path = FOLDER) -> None:
        """Files that were made before `made_after`, in seconds since the epoch, are not ours whoever maps them."""
        self._made_after = made_after
        self._folder = folder
        self._mapped = re.compile(rb" (\d+) +" + re.escape(bytes(folder)) + rb"/[^/\n]+$", re.MULTILINE)
        self._changed_at: int | None = None
        self._pids: frozenset[int] = frozenset()
        self._owners: dict[str, set[int]] = {}

    def update(self, pids: Collection[int]) -> None:
        """Note the files that the running processes `pids` have mapped, and remove those whose processes have ended.
        Reads no map while no process has ended and the folder has not changed."""
        try:
            changed_at = self._folder.stat().st_mtime_ns
        except OSError:  # not on this system
            return
        if changed_at == self._changed_at and self._pids.issubset(pids):
            return
        self._changed_at, self._pids = changed_at, frozenset(pids)
        names = self._names()
        for pid in pids:
            for inode in self._inodes(pid) & names.keys():
                self._owners.setdefault(names[inode], set()).add(pid)
        self._remove([name for name, owners in self._owners.items() if owners.isdisjoint(pids)])

    def remove_all(self) -> None:
        """Remove what is left of them; the processes have ended."""
        self._remove(list(self._owners))

    def _names(self) -> dict[int, str]:
        with os.scandir(self._folder) as entries:
            return {
                entry.inode(): entry.name
                for entry in entries
                if entry.name.startswith(PREFIXES) and self._is_new(entry)
            }

    def _is_new(self, entry: os.DirEntry[str]) -> bool:
        with suppress(OSError):  # it has just been removed
            return entry.stat(follow_symlinks=False).st_mtime >= self._made_after  # which writing to a map leaves alone
        return False

    def _inodes(self, pid: int) -> set[int]:
        """Of the folder's files that the process has mapped."""
        with suppress(OSError):  # it has just ended
            return {int(inode) for inode in self._mapped.findall(Path(f"/proc/{pid}/maps").read_bytes())}
        return set()

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            del self._owners[name]
            with suppress(OSError):  # its owner has removed it
                (self._folder / name).unlink()
