"""Segments in shared memory that killed processes leave."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from rbee_serve.supervisor.shared_memory import SharedMemory

MAP = """
import mmap, sys
files = [open(name, "r+b") for name in sys.argv[1:]]
maps = [mmap.mmap(file.fileno(), 0) for file in files]
print(flush=True)
sys.stdin.read()
"""


def mapping(*files: Path) -> subprocess.Popen[str]:
    """A process that has mapped the files."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAP, *map(str, files)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.fixture
def memory(tmp_path: Path) -> SharedMemory:
    """Of a start before anything else."""
    return SharedMemory(0, tmp_path)


@pytest.fixture
def segments(memory: SharedMemory, tmp_path: Path) -> list[Path]:
    """Two segments, a semaphore, and a model that the operator keeps in memory."""
    files = [tmp_path / name for name in ("psm_1", "psm_2", "sem.loky-1-a", "model.gguf")]
    for file in files:
        file.write_bytes(b"content")
    return files


def test_what_a_dead_process_had_mapped_is_removed_while_others_run(
    memory: SharedMemory, segments: list[Path], tmp_path: Path
) -> None:
    first, second, semaphore, model = segments
    dying, living = mapping(first, semaphore, model), mapping(second, semaphore)
    with dying, living:
        memory.update({dying.pid, living.pid})
        assert all(file.exists() for file in segments)
        dying.kill()
        dying.wait()
        memory.update({living.pid})
        assert not first.exists()
        assert second.exists()
        assert semaphore.exists()
        living.kill()
        living.wait()
        memory.remove_all()
    assert list(tmp_path.iterdir()) == [model]


def test_a_semaphore_that_was_renamed_after_it_was_mapped_is_removed(memory: SharedMemory, tmp_path: Path) -> None:
    made = tmp_path / "sem.Ab3dEf"
    made.write_bytes(b"content")
    with mapping(made) as process:
        made.rename(tmp_path / "sem.loky-1-a")
        memory.update({process.pid})
        process.kill()
    memory.update(set())
    assert list(tmp_path.iterdir()) == []


def test_a_segment_that_was_there_before_the_start_stays_though_a_process_of_ours_has_mapped_it(
    segments: list[Path], tmp_path: Path
) -> None:
    memory = SharedMemory(time.time() + 1, tmp_path)
    with mapping(*segments) as process:
        memory.update({process.pid})
        process.kill()
    memory.update(set())
    memory.remove_all()
    assert all(file.exists() for file in segments)


def test_segments_of_other_programs_stay(memory: SharedMemory, segments: list[Path]) -> None:
    with mapping() as process:
        memory.update({process.pid})
        process.kill()
    memory.update(set())
    memory.remove_all()
    assert all(file.exists() for file in segments)


def test_a_system_without_that_folder_has_nothing_to_remove(tmp_path: Path) -> None:
    memory = SharedMemory(0, tmp_path / "missing")
    memory.update({1})
    memory.remove_all()
