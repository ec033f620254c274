"""A lock for each GPU, so that one model at a time is loaded onto it, among all processes of this user on the machine.

Engines that load at the same time take each other's memory for their own. vLLM sizes its KV cache by the GPU's free
memory before and after a test run: what another process allocates meanwhile is missing from the cache, and what it
frees ends the engine (https://github.com/vllm-project/vllm/issues/55827).

    gpu-0.lock                         locked by the process that loads; holds the id of its worker
    gpu-0.wait-09999500-….-3f2a91c4    locked by a process that waits; the first name is the next to load

Both are locked by `flock`, which the kernel releases when a process ends, however it ends. Their descriptors are not
inherited by the processes that an engine starts.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from rbee_serve import nvml
from rbee_serve.worker.spec import Device

logger = logging.getLogger(__name__)

BASE_FOLDER = "/tmp"  # noqa: S108 - the folder in it is this user's own, or it is not used
"""Where the folder of the locks is. Not `TMPDIR`, which differs between the starts of the server, nor
`XDG_RUNTIME_DIR`, which services and containers do not have."""
MAX_SHARE = 10_000.0
"""Of a worker, in GPUs."""


def gpu_locks(device: Device, worker_id: str, share: float) -> list[GpuLock]:
    """The locks for a load of that worker onto its GPUs, in the order in which every load has to take them, so that no
    two wait for each other. `share` is the number of GPUs that the worker may use; the largest goes first.

    Empty on another device, and where there is no folder for locks. Blocks while the driver is queried for the UUIDs.
    """
    if device.accelerator != "cuda":
        return []
    try:
        folder = lock_folder()
    except OSError as exc:
        logger.warning("models may be loaded onto a GPU at the same time, as there is no folder for its lock: %s", exc)
        return []
    names = {gpu_name(gpu_id) for gpu_id in device.ids}
    return [GpuLock(folder, name, worker_id, share) for name in sorted(names)]


def gpu_name(gpu_id: str) -> str:
    """A GPU's UUID, which all processes know it by, or `gpu-` and its id where the driver does not report it."""
    try:
        name = nvml.gpu(gpu_id).uuid
    except nvml.NvmlUnavailable:
        name = f"gpu-{gpu_id}"
    return re.sub(r"[^\w-]", "_", name)


def lock_folder() -> Path:
    """A folder that only this user can enter. Raises `OSError` if there is none and none can be made."""
    folders = [Path(base, f"rbee-gpus-{os.getuid()}") for base in (BASE_FOLDER, tempfile.gettempdir())]
    for folder in folders:
        with suppress(OSError):
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            status = folder.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
                return folder
    raise PermissionError(f"{folders[0]} belongs to another user, or others can enter it; remove it")


class GpuLock:
    """The lock of one GPU as one load sees it. For use in one thread."""

    def __init__(self, folder: Path, gpu: str, worker_id: str, share: float) -> None:
        self.gpu = gpu
        self.others_loaded = False
        """Whether another load has held it, or went first, since this object was made."""
        self._path = folder / f"{gpu}.lock"
        rank = round(1000 * (MAX_SHARE - min(share, MAX_SHARE)))
        self._slot = folder / f"{gpu}.wait-{rank:08d}-{time.monotonic_ns():020d}-{secrets.token_hex(4)}"
        self._worker_id = worker_id
        self._made_at = time.time()
        self._held: int | None = None
        self._queued: int | None = None

    def try_acquire(self) -> bool:
        """Take the lock if it is free and nobody waits who goes first; otherwise stand in the queue, until a later call
        succeeds. True once it is held. Never blocks."""
        if self._held is not None:
            return True
        try:
            if self._is_first() and self._lock():
                self.leave_queue()
                return True
            self._enter_queue()
        except OSError as exc:  # such as a file system without locks
            logger.warning("a model is loaded onto %s without its lock %s: %s", self.gpu, self._path, exc.strerror)
            self.leave_queue()
            return True
        self.others_loaded = True
        return False

    def holder(self) -> str | None:
        """The id of the worker that holds the lock, or held it last."""
        try:
            return self._path.read_text() or None
        except OSError:
            return None

    def leave_queue(self) -> None:
        """Wait no longer. A lock that is held stays held."""
        if self._queued is not None:
            self._slot.unlink(missing_ok=True)
            os.close(self._queued)
            self._queued = None

    def release(self) -> None:
        """Release the lock, if it is held, and wait no longer."""
        self.leave_queue()
        if self._held is not None:
            os.utime(self._held)  # when it was held last
            os.close(self._held)
            self._held = None

    def _is_first(self) -> bool:
        queue = sorted(self._path.parent.glob(f"{self.gpu}.wait-*"))
        return not any(_is_locked(slot) for slot in queue if slot.name < self._slot.name)

    def _lock(self) -> bool:
        descriptor = _opened(self._path, os.O_RDWR | os.O_CREAT)
        if not _flocked(descriptor, fcntl.LOCK_EX):
            os.close(descriptor)
            return False
        self._held = descriptor
        status = os.fstat(descriptor)
        if status.st_size and status.st_mtime >= self._made_at:
            self.others_loaded = True
        os.truncate(descriptor, 0)
        os.write(descriptor, self._worker_id.encode())
        return True

    def _enter_queue(self) -> None:
        if self._queued is None:
            # It gets its name when it is locked: files of the queue that nobody locks are removed.
            made = self._slot.with_name(f".{self._slot.name}")
            self._queued = _opened(made, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            fcntl.flock(self._queued, fcntl.LOCK_EX)
            made.rename(self._slot)


def _is_locked(slot: Path) -> bool:
    """Whether the process that waits with this file lives. The file of a dead one is removed."""
    try:
        descriptor = _opened(slot, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        if not _flocked(descriptor, fcntl.LOCK_SH):
            return True
        slot.unlink(missing_ok=True)
        return False
    finally:
        os.close(descriptor)


def _opened(path: Path, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _flocked(descriptor: int, kind: int) -> bool:
    """Whether the lock was free. Raises `OSError` where the file system has no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
