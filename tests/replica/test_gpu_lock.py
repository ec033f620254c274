"""The lock of a GPU: who gets it, who is next, and who loses it."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rbee_serve import nvml
from rbee_serve.replica import gpu_lock
from rbee_serve.replica.gpu_lock import GpuLock, gpu_locks, gpu_name, lock_folder
from rbee_serve.worker.spec import Device
from tests.gpus.fake_nvml import FakeGpu, FakeNvml

Make = Callable[..., GpuLock]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes locks of one GPU, and releases them at the end."""
    made: list[GpuLock] = []

    def lock(worker_id: str = "a", share: float = 0.5, gpu: str = "gpu-0") -> GpuLock:
        made.append(GpuLock(tmp_path, gpu, worker_id, share))
        return made[-1]

    yield lock
    for each in made:
        each.release()


PROCESS = """
import subprocess, sys, time
from pathlib import Path
from rbee_serve.replica.gpu_lock import GpuLock

lock = GpuLock(Path(sys.argv[1]), "gpu-0", "other", float(sys.argv[2]))
print(lock.try_acquire(), flush=True)
if "child" in sys.argv:
    print(subprocess.Popen(["sleep", "60"], close_fds=False, stdout=subprocess.DEVNULL).pid, flush=True)
time.sleep(60)
"""


@contextmanager
def process(folder: Path, share: float, *options: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A process that tries to take the lock of `gpu-0`, and what it prints."""
    arguments = [sys.executable, "-c", PROCESS, str(folder), str(share), *options]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        try:
            yield other, [other.stdout.readline().strip() for _ in range(1 + len(options))]
        finally:
            other.kill()


def test_one_load_at_a_time_holds_the_lock(make: Make) -> None:
    first, second = make("first"), make("second")
    assert first.try_acquire()
    assert first.try_acquire()
    assert not second.try_acquire()
    assert second.holder() == "first"
    first.release()
    assert second.try_acquire()
    assert make().holder() == "second"


def test_other_gpus_have_other_locks(make: Make) -> None:
    assert make(gpu="gpu-1").try_acquire()
    assert make(gpu="gpu-10").try_acquire()
    assert make(gpu="gpu-0").try_acquire()


def test_the_largest_share_that_waits_is_next_and_equal_ones_in_the_order_of_their_loads(make: Make) -> None:
    holder = make("holder", 1)
    assert holder.try_acquire()
    waiting = [make("small", 0.25), make("large", 0.5), make("large too", 0.5), make("whole", 1), make("last", 0)]
    for lock in (*waiting, *reversed(waiting)):
        assert not lock.try_acquire()
    holder.release()
    order = []
    for _ in range(len(waiting)):
        taken = [lock for lock in waiting if lock.try_acquire()]
        assert len(taken) == 1
        order += [lock.holder() for lock in taken]
        waiting.remove(taken[0])
        taken[0].release()
    assert order == ["whole", "large", "large too", "small", "last"]


def test_a_load_that_waits_no_longer_is_passed_over(make: Make) -> None:
    holder, large, small = make(), make(share=0.9), make(share=0.1)
    assert holder.try_acquire()
    assert not large.try_acquire()
    assert not small.try_acquire()
    holder.release()
    assert not small.try_acquire()
    large.leave_queue()
    assert small.try_acquire()


def test_a_holder_that_is_killed_frees_the_lock(make: Make, tmp_path: Path) -> None:
    mine = make()
    with process(tmp_path, 0.5) as (other, [acquired]):
        assert acquired == "True"
        assert not mine.try_acquire()
        assert mine.holder() == "other"
        other.kill()
        other.wait()
        assert mine.try_acquire()


def test_a_load_that_is_killed_while_it_waits_is_passed_over(make: Make, tmp_path: Path) -> None:
    holder, mine = make(), make(share=0.1)
    assert holder.try_acquire()
    with process(tmp_path, 0.9) as (other, [acquired]):
        assert acquired == "False"
        holder.release()
        assert not mine.try_acquire()
        other.kill()
        other.wait()
        assert mine.try_acquire()
    assert [path.name for path in tmp_path.iterdir()] == ["gpu-0.lock"]


def test_a_process_that_the_holder_started_does_not_keep_the_lock(make: Make, tmp_path: Path) -> None:
    with process(tmp_path, 0.5, "child") as (other, [acquired, child]):
        assert acquired == "True"
        other.kill()
        other.wait()
        try:
            assert make().try_acquire()
        finally:
            subprocess.run(["kill", child], check=True)


def test_a_load_knows_whether_others_have_loaded_since_it_began(make: Make) -> None:
    alone = make()
    assert alone.try_acquire()
    assert not alone.others_loaded
    alone.release()
    time.sleep(0.05)  # the clock of files is coarse
    later = make()
    assert later.try_acquire()
    assert not later.others_loaded
    waits, comes_last = make(), make()
    assert not waits.try_acquire()
    assert waits.others_loaded
    waits.leave_queue()
    time.sleep(0.05)
    later.release()
    assert comes_last.try_acquire()
    assert comes_last.others_loaded


def test_a_file_system_without_locks_prevents_no_load(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(descriptor: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert make().try_acquire()
    assert "gpu-0 without its lock" in caplog.text


def test_the_locks_of_several_gpus_come_in_one_order_for_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_lock, "BASE_FOLDER", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(FakeGpu(uuid="GPU-b"), FakeGpu(uuid="GPU-a")))
    for ids in (("0", "1"), ("1", "0")):
        assert [lock.gpu for lock in gpu_locks(Device("cuda", ids), "w", 2)] == ["GPU-a", "GPU-b"]


@pytest.mark.parametrize("accelerator", ["cpu", "metal"])
def test_other_devices_have_no_locks(accelerator: str) -> None:
    assert gpu_locks(Device(accelerator), "w", 1) == []


def test_a_gpu_has_the_name_that_all_processes_know_it_by(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = FakeGpu(uuid="GPU-8f9d")
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(whole))
    assert gpu_name("0") == gpu_name("GPU-8f9d") == "GPU-8f9d"
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(whole, FakeGpu(uuid="MIG-11", parent=whole)))
    assert gpu_name("0") == gpu_name("MIG-11") == "MIG-11"  # CUDA takes the first instance


@pytest.mark.parametrize(("gpu_id", "name"), [("3", "gpu-3"), ("MIG-GPU-8f9d/1/0", "gpu-MIG-GPU-8f9d_1_0")])
def test_a_gpu_that_the_driver_does_not_know_has_its_id(
    monkeypatch: pytest.MonkeyPatch, gpu_id: str, name: str
) -> None:
    def unavailable(gpu_id: str) -> Any:
        raise nvml.NvmlUnavailable("no driver")

    monkeypatch.setattr(nvml, "gpu", unavailable)
    assert gpu_name(gpu_id) == name


def test_the_folder_is_of_this_user_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_lock, "BASE_FOLDER", str(tmp_path))
    folder = lock_folder()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert lock_folder() == folder


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file", "no base"])
def test_a_folder_that_others_may_have_made_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    base, second = tmp_path / "base", tmp_path / "second"
    second.mkdir()
    if kind != "no base":
        base.mkdir()
    monkeypatch.setattr(gpu_lock, "BASE_FOLDER", str(base))
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(second))
    wanted = base / lock_folder().name
    if kind == "open to others":
        wanted.chmod(0o750) if wanted.exists() else wanted.mkdir(mode=0o750)
    elif kind == "a link":
        wanted.rmdir()
        wanted.symlink_to(tmp_path, target_is_directory=True)
    elif kind == "a file":
        wanted.rmdir()
        wanted.touch()
    assert lock_folder().parent == second
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(base))
    assert gpu_locks(Device("cuda"), "w", 1) == []
    assert "no folder for its lock" in caplog.text
