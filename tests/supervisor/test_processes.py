"""Signals, and processes that outlive the supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from rbee_serve.supervisor.call_timeout import call_with_timeout
from rbee_serve.supervisor.stop_signal import SIGNALS, STOPPED_AT_ONCE, Stopped, StopSignal


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    """A signal handler; the old ones are restored afterwards."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield StopSignal()
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_is_recorded(signum: signal.Signals, stop: StopSignal) -> None:
    signal.signal(signum, signal.SIG_DFL)
    stop.install()
    assert not stop.received
    signal.raise_signal(signum)
    assert stop.received
    assert stop.wait(0)


def test_a_signal_interrupts_the_start(stop: StopSignal) -> None:
    stop.install()
    with pytest.raises(Stopped), stop.interrupting():
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Stopped), stop.interrupting():
        pytest.fail("it must not be begun")


def test_a_signal_whose_exception_python_dropped_is_found_between_the_steps(stop: StopSignal) -> None:
    stop.install()
    stop.check()
    with stop.interrupting():
        with suppress(Stopped):  # as Python does in the callbacks of a fork
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            stop.check()


def test_rays_own_reaction_to_sigterm_is_a_stop_too(stop: StopSignal) -> None:
    with pytest.raises(Stopped), stop.interrupting():
        sys.exit(15)
    assert stop.received


def test_a_signal_that_is_ignored_stays_ignored(stop: StopSignal) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop.install()
    signal.raise_signal(signal.SIGHUP)
    assert not stop.received


def test_a_second_signal_ends_the_process_at_once() -> None:
    program = """
import signal
from rbee_serve.supervisor.stop_signal import StopSignal
StopSignal().install()
signal.raise_signal(signal.SIGTERM)
signal.raise_signal(signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (STOPPED_AT_ONCE, "stopped at once\n")


ENGINE = """
import multiprocessing.resource_tracker, os, signal, socket, subprocess, tempfile, time
from multiprocessing.shared_memory import SharedMemory
folder = tempfile.mkdtemp()
listener = socket.socket(socket.AF_UNIX)
listener.bind(folder + "/socket")
segment = SharedMemory(create=True, size=1 << 20)
os.kill(multiprocessing.resource_tracker._resource_tracker._pid, signal.SIGKILL)  # it would remove the segment
print(subprocess.Popen(["sleep", "100"]).pid, folder, segment.name, flush=True)
time.sleep(100)
"""
"""What an engine makes, as far as it would leave it."""

SUPERVISOR = f"""
import os, subprocess, sys, time
from rbee_serve.supervisor.reaper import start_reaper
from rbee_serve.supervisor.temp_folder import make_temp_folder
reaper = start_reaper(make_temp_folder(os.environ))
subprocess.Popen([sys.executable, "-c", {ENGINE!r}], start_new_session=True)
time.sleep(1.5)
reaper.stdin.write(b".")
sys.stdin.read()
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None])
def test_nothing_outlives_the_supervisor(end: signal.Signals | None) -> None:
    with tempfile.TemporaryDirectory() as folder:  # short enough for a socket
        supervisor = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": folder},
        )
        assert supervisor.stdout is not None
        assert supervisor.stdin is not None
        grandchild, made, segment = supervisor.stdout.readline().split()
        started = [*psutil.Process(supervisor.pid).children(recursive=True), psutil.Process(int(grandchild))]
        assert Path(made, "socket").is_socket()
        assert Path(made).is_relative_to(folder)
        assert Path("/dev/shm", segment).exists()
        time.sleep(1.5)  # the reaper records the descendants
        if end is None:
            supervisor.stdin.close()
        else:
            supervisor.send_signal(end)
        supervisor.wait()
        supervisor.stdout.close()
        supervisor.stdin.close()
        assert psutil.wait_procs(started, timeout=10)[1] == []
        assert list(Path(folder).iterdir()) == []
        assert not Path("/dev/shm", segment).exists()


def test_a_call_that_hangs_is_abandoned_after_its_timeout() -> None:
    assert call_with_timeout(1, lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        call_with_timeout(1, lambda: 1 // 0)
    with pytest.raises(TimeoutError):
        call_with_timeout(0.05, lambda: time.sleep(1))
