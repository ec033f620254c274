"""The temporary folder of a start, and those that killed starts have left."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rbee_serve.errors import ConfigurationError
from rbee_serve.supervisor import temp_folder
from rbee_serve.supervisor.temp_folder import PREFIX, make_temp_folder, remove_stale


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The system's temporary folder, with a path of usual length."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def aged(folder: Path) -> None:
    """Make the folder as old as one that is surely locked if its owner runs."""
    os.utime(folder, (0, 0))


def test_child_processes_use_the_folder_and_ray_keeps_its_own(base: Path) -> None:
    environ: dict[str, str] = {}
    made = make_temp_folder(environ)
    assert made.path.parent == base
    assert (environ["TMPDIR"], environ["RAY_TMPDIR"]) == (str(made.path), str(base))
    assert made.path.stat().st_mode & 0o777 == 0o700
    os.close(made.lock)


def test_a_folder_that_the_operator_chose_for_ray_or_torch_stays(base: Path) -> None:
    chosen = {"RAY_TMPDIR": "/var/ray", "TORCHINDUCTOR_CACHE_DIR": "/var/compiled"}
    environ = dict(chosen)
    os.close(make_temp_folder(environ).lock)
    assert environ.items() > chosen.items()


def test_the_code_that_torch_compiles_stays_where_torch_itself_keeps_it(base: Path) -> None:
    torchs = "from torch._inductor.runtime.cache_dir_utils import default_cache_dir; print(default_cache_dir())"
    without = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    command = [sys.executable, "-c", torchs]
    before = subprocess.check_output(command, env=without | {"TMPDIR": str(base)}, text=True).strip()
    environ: dict[str, str] = {}
    os.close(make_temp_folder(environ).lock)
    assert environ["TORCHINDUCTOR_CACHE_DIR"] == before


def test_the_next_start_removes_the_folder_of_a_start_that_was_killed_with_its_reaper(base: Path) -> None:
    killed, running = make_temp_folder({}), make_temp_folder({})
    for folder in (killed, running):
        (folder.path / "socket").touch()
    os.close(killed.lock)
    third = make_temp_folder({})
    assert set(base.iterdir()) == {running.path, third.path}
    os.close(running.lock)
    os.close(third.lock)


def test_a_young_folder_and_folders_of_other_programs_stay(base: Path) -> None:
    young = base / f"{PREFIX}young"
    young.mkdir()
    other = base / "rbee-other"
    other.mkdir()
    aged(other)
    remove_stale(base)
    assert set(base.iterdir()) == {young, other}


def test_a_folder_of_another_user_stays(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = base / f"{PREFIX}theirs"
    theirs.mkdir()
    aged(theirs)
    monkeypatch.setattr(os, "getuid", lambda: theirs.stat().st_uid + 1)
    remove_stale(base)
    assert list(base.iterdir()) == [theirs]


def test_what_others_name_like_our_folder_neither_stops_the_start_nor_leads_elsewhere(base: Path) -> None:
    elsewhere = base / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    aged(elsewhere)
    (base / f"{PREFIX}link").symlink_to(elsewhere)
    os.mkfifo(base / f"{PREFIX}pipe")
    trap = base / f"{PREFIX}trap"
    trap.mkdir()
    os.mkfifo(trap / "lock")
    aged(trap)
    remove_stale(base)
    assert {path.name for path in base.iterdir()} == {"elsewhere", f"{PREFIX}link", f"{PREFIX}pipe"}
    assert (elsewhere / "file").exists()


def test_programs_that_clean_up_by_age_see_the_lock_on_the_folder_itself(base: Path) -> None:
    made = make_temp_folder({})
    with subprocess.Popen(["flock", "--nonblock", str(made.path), "true"]) as cleaner:
        assert cleaner.wait() == 1
    os.close(made.lock)
    assert subprocess.call(["flock", "--nonblock", str(made.path), "true"]) == 0


def test_a_file_system_without_locks_will_do(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(fcntl, "flock", refuse)
    first = make_temp_folder({})
    aged(first.path)
    second = make_temp_folder({})
    assert set(base.iterdir()) == {first.path, second.path}
    os.close(first.lock)
    os.close(second.lock)


def test_where_no_folder_can_be_made_the_operator_is_told_what_to_set(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(base / "missing"))
    with pytest.raises(ConfigurationError, match=r"^no temporary folder can be made \(No such .*; set TMPDIR to "):
        make_temp_folder({})


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
        made.path.rmdir()


def test_where_tmp_cannot_be_used_the_path_is_long(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = base / ("d" * 60)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    monkeypatch.setattr(temp_folder, "SHORT_FOLDER", str(base / "missing"))
    made = make_temp_folder({})
    assert made.path.parent == deep
    os.close(made.lock)
