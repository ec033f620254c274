"""A folder for the sockets between a replica and its vLLM processes, which vLLM itself never removes: a dozen for each
engine, in the system's temporary folder."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

FOLDER = "VLLM_RPC_BASE_PATH"
"""vLLM's environment variable with the folder of its sockets, inherited by the engine's processes."""
OURS = "RBEE_SERVE_ENGINE_SOCKETS"
"""The folder if we made it: one that the operator chose is not removed. Both variables are inherited, so a folder is in
use here only if both name it."""


@functools.cache
def make_socket_folder() -> Path:
    """Have vLLM make the sockets of this process's engines in a folder that is removed when the process exits, and
    return the folder. If it is killed, its engine's process calls `remove_socket_folder` (`plugin`)."""
    if os.environ.get(FOLDER) == os.environ.get(OURS):  # neither is set, or a process above this one has set both
        os.environ[FOLDER] = os.environ[OURS] = tempfile.mkdtemp(prefix="rbee-")
        atexit.register(remove_socket_folder)
    return Path(os.environ[FOLDER])


def own_folder() -> str | None:
    """The folder that `make_socket_folder` has made, in that process or in one above this one."""
    folder = os.environ.get(OURS)
    return folder if folder and folder == os.environ.get(FOLDER) else None


def remove_socket_folder() -> None:
    """Remove `own_folder`, if there is one."""
    if folder := own_folder():
        shutil.rmtree(folder, ignore_errors=True)
