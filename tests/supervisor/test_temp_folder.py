"""The temporary folder of a start, and those that killed starts have left."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rbee_serve.supervisor import temp_folder
from rbee_serve.supervisor.temp_folder import LOCK, PREFIX, make_temp_folder, remove_stale


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The system's temporary folder, with a path of usual length."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def aged(lock_file: Path) -> None:
    """Make the file as old as one that is surely locked if its owner runs."""
    os.utime(lock_file, (0, 0))


def test_child_processes_use_the_folder_and_ray_keeps_its_own(base: Path) -> None:
    environ: dict[str, str] = {}
    made = make_temp_folder(environ)
    assert made.path.parent == base
    assert environ == {"TMPDIR": str(made.path), "RAY_TMPDIR": str(base)}
    assert made.path.stat().st_mode & 0o777 == 0o700
    os.close(made.lock)


def test_a_folder_that_the_operator_chose_for_ray_stays(base: Path) -> None:
    environ = {"RAY_TMPDIR": "/var/ray"}
    os.close(make_temp_folder(environ).lock)
    assert environ["RAY_TMPDIR"] == "/var/ray"


def test_the_next_start_removes_the_folder_of_a_start_that_was_killed_with_its_reaper(base: Path) -> None:
    killed, running = make_temp_folder({}), make_temp_folder({})
    (killed.path / "socket").touch()
    for folder in (killed, running):
        aged(folder.path / LOCK)
    os.close(killed.lock)
    third = make_temp_folder({})
    assert set(base.iterdir()) == {running.path, third.path}
    os.close(running.lock)
    os.close(third.lock)


def test_a_young_folder_and_folders_of_others_stay(base: Path) -> None:
    young = base / f"{PREFIX}young"
    young.mkdir()
    (young / LOCK).touch()
    other = base / "rbee-other"
    other.mkdir()
    (other / LOCK).touch()
    aged(other / LOCK)
    remove_stale(base)
    assert set(base.iterdir()) == {young, other}


def test_where_the_path_is_too_long_for_sockets_the_folder_is_in_tmp(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = base / ("d" * 60)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    made = make_temp_folder({})
    try:
        assert made.path.parent == Path("/tmp")
        assert len(bytes(made.path)) <= temp_folder.MAX_PATH_BYTES
    finally:
        os.close(made.lock)
        (made.path / LOCK).unlink()
        made.path.rmdir()
