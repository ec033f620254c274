"""Ends what Ray leaves behind when the supervisor dies without a word.

The kernel ends Ray's main processes with us, and they their workers; but Ray's agents stay a minute longer, and
processes that a worker has started (vLLM's engines) may stay for ever. So a small process of its own notes all our
descendants and waits at a pipe that only we hold. When the pipe is closed, however we ended, it kills those that are
left. (They cannot be found afterwards: their parent is init then, and many write over their own environment.)

    python -m rbee_serve.supervisor.reaper      started by `start_reaper`
"""

from __future__ import annotations

import os
import select
import subprocess
import sys

import psutil

POLL_S = 2.0
"""How often the descendants are noted."""
GRACE_S = 2.0
"""How long they may take to leave by themselves."""


def start_reaper() -> subprocess.Popen[bytes]:
    """Start the process that outlives us. Its `stdin` is the pipe: who holds the result holds that open."""
    command = [sys.executable, "-m", "rbee_serve.supervisor.reaper"]
    # A session of its own: a Ctrl+C on the terminal is for us, not for it.
    return subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True)  # noqa: S603


def wait_and_reap(supervisor: psutil.Process) -> None:
    """Note the descendants of `supervisor`, now and then and at each byte, until standard input ends; then end those
    that are left."""
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
    """What it has started, directly or not; nothing if it is gone."""
    try:
        return set(process.children(recursive=True))
    except psutil.Error:
        return set()


if __name__ == "__main__":
    wait_and_reap(psutil.Process(os.getppid()))
