"""Kills the processes that outlive a supervisor which was killed.

The kernel ends Ray's main processes with the supervisor, and they end their workers; but Ray's agents stay a minute
longer, and child processes of a worker (vLLM's engines) may stay for ever. So a small process records all descendants
of the supervisor and waits on a pipe that only the supervisor holds. When the pipe closes, for whatever reason, it
kills those that are left. (Later they could not be found: their parent is then init, and many overwrite their own
environment.)

    python -m rbee_serve.supervisor.reaper      started by `start_reaper`
"""

from __future__ import annotations

import os
import select
import subprocess
import sys

import psutil

POLL_S = 2.0
"""How often the descendants are recorded."""
GRACE_S = 2.0
"""How long they may take to end by themselves."""


def start_reaper() -> subprocess.Popen[bytes]:
    """Start the reaper. Its `stdin` is the pipe, which the result keeps open."""
    command = [sys.executable, "-m", "rbee_serve.supervisor.reaper"]
    # A session of its own, so that a Ctrl+C on the terminal does not reach it.
    return subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True)  # noqa: S603


def wait_and_reap(supervisor: psutil.Process) -> None:
    """Record the descendants of `supervisor`, every `POLL_S` and at each byte, until standard input ends; then kill
    those that are left."""
    known: set[psutil.Process] = set()
    while not select.select([sys.stdin], [], [], POLL_S)[0] or os.read(sys.stdin.fileno(), 1):
        known = {process for process in known if process.is_running()} | descendants(supervisor)
    for process in list(known):
        known |= descendants(process)
    known.discard(psutil.Process())
    for process in psutil.wait_procs(known, timeout=GRACE_S)[1]:
        try:
            process.kill()
        except psutil.Error:
            continue


def descendants(process: psutil.Process) -> set[psutil.Process]:
    """All child processes, direct and indirect; none if the process is gone."""
    try:
        return set(process.children(recursive=True))
    except psutil.Error:
        return set()


if __name__ == "__main__":
    wait_and_reap(psutil.Process(os.getppid()))
