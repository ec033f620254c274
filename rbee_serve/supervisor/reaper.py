"""Kills the processes that outlive a supervisor which was killed, and removes what processes of a start leave behind.

The kernel ends Ray's main processes with the supervisor, and they end their workers; but Ray's agents stay a minute
longer, and child processes of a worker (vLLM's engines) may stay for ever. So a small process records all descendants
of the supervisor and waits on a pipe that only the supervisor holds. When the pipe closes, for whatever reason, it
kills those that are left. (Later they could not be found: their parent is then init, and many overwrite their own
environment.) Then it removes their shared memory and their temporary folder.

    python -m rbee_serve.supervisor.reaper FOLDER STARTED_AT      started by `start_reaper`
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

from rbee_serve.supervisor.shared_memory import SharedMemory
from rbee_serve.supervisor.temp_folder import TempFolder

POLL_S = 2.0
"""How often the descendants are recorded."""
GRACE_S = 2.0
"""How long they may take to end by themselves."""
KILL_S = 2.0
"""How long a killed process may take to end."""


def start_reaper(temp: TempFolder) -> subprocess.Popen[bytes]:
    """Start the reaper. Its `stdin` is the pipe, which the result keeps open; it holds the lock of `temp` too."""
    command = [sys.executable, "-m", "rbee_serve.supervisor.reaper", str(temp.path), str(time.time())]
    # A session of its own, so that a Ctrl+C on the terminal does not reach it.
    return subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True, pass_fds=[temp.lock]
    )


def wait_and_reap(supervisor: psutil.Process, folder: Path, started_at: float) -> None:
    """Record the descendants of `supervisor`, every `POLL_S` and at each byte, until standard input ends; then kill
    those that are left, and remove `folder` and their shared memory, except what is older than `started_at`."""
    known: set[psutil.Process] = set()
    memory = SharedMemory(started_at)
    while not select.select([sys.stdin], [], [], POLL_S)[0] or os.read(sys.stdin.fileno(), 1):
        known = {process for process in known if process.is_running()} | descendants(supervisor)
        memory.update({process.pid for process in known})
    for process in list(known):
        known |= descendants(process)
    known.discard(psutil.Process())
    left = psutil.wait_procs(known, timeout=GRACE_S)[1]
    for process in left:
        try:
            process.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(left, timeout=KILL_S)
    memory.remove_all()
    shutil.rmtree(folder, ignore_errors=True)


def descendants(process: psutil.Process) -> set[psutil.Process]:
    """All child processes, direct and indirect; none if the process is gone."""
    try:
        return set(process.children(recursive=True))
    except psutil.Error:
        return set()


if __name__ == "__main__":
    wait_and_reap(psutil.Process(os.getppid()), Path(sys.argv[1]), float(sys.argv[2]))
