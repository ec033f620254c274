"""The lines of Ray's log folder, and their sources."""

from __future__ import annotations

from pathlib import Path
from queue import Queue

import pytest

from rbee_serve.supervisor import log_folder
from rbee_serve.supervisor.log_folder import LogFolder, LogReader

NAMES = {
    "worker-40cdc675-01000000-21794.err": "ServeReplica:rbee:llm-0",
    "worker-40cdc675-ffffffff-21795.out": "21795",
    "raylet.err": "raylet",
    "gcs_server.1.err": "gcs_server",
}
OTHERS = ["raylet.out", "python-core-worker-40cdc675_21794.log", "dashboard_agent.err", "worker-40cdc675-1-1.txt"]


def add(path: Path, text: str | bytes) -> None:
    with path.open("ab") as file:
        file.write(text if isinstance(text, bytes) else text.encode())


def new(folder: LogFolder) -> dict[str, list[str]]:
    return {source: list(lines) for source, lines in folder.new_lines()}


def test_each_line_is_read_once_with_its_actor_or_process_as_source(tmp_path: Path) -> None:
    folder = LogFolder(tmp_path)
    assert new(folder) == {}
    for name, source in NAMES.items():
        header = f":job_id:01000000\n:actor_name:{source}\n:task_name:load\n" if ":" in source else ""
        add(tmp_path / name, f"{header}one\ntwo\r\n")
    for name in OTHERS:
        add(tmp_path / name, "not shown\n")
    (tmp_path / "worker-old").mkdir()
    assert new(folder) == {source: ["one", "two"] for source in NAMES.values()}
    assert new(folder) == {}
    add(tmp_path / "raylet.err", "three\n")
    assert new(folder) == {"raylet": ["three"]}


def test_an_unfinished_line_waits_for_its_end_and_a_progress_bar_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, path = LogFolder(tmp_path), tmp_path / "worker-4-01-7.err"
    add(path, "one, then")
    assert new(folder) == {}
    add(path, " more\n")
    assert new(folder) == {"7": ["one, then more"]}
    monkeypatch.setattr(log_folder, "MAX_LINE_BYTES", 10)
    add(path, "\r 10 %" * 3)
    assert new(folder) == {"7": ["\r 10 %" * 3]}


def test_a_truncated_file_is_read_from_its_beginning(tmp_path: Path) -> None:
    folder, path = LogFolder(tmp_path), tmp_path / "worker-4-01-7.err"
    add(path, "one\ntwo\nthr")
    assert new(folder) == {"7": ["one", "two"]}
    path.write_text("four\n")
    assert new(folder) == {"7": ["four"]}


def test_invalid_utf_8_and_more_than_one_scan_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_folder, "MAX_READ_BYTES", 8)
    folder, path = LogFolder(tmp_path), tmp_path / "worker-4-01-7.err"
    add(path, b"\xff one\ntwo\nthree\n")
    assert new(folder) == {"7": ["\ufffd one"]}
    assert new(folder) == {"7": ["two", "three"]}


def test_the_reader_passes_on_new_lines_and_the_last_ones_when_it_is_closed(tmp_path: Path) -> None:
    received: Queue[tuple[str, list[str]]] = Queue()
    reader = LogReader(tmp_path, lambda source, lines: received.put((source, list(lines))))
    add(tmp_path / "raylet.err", "one\n")
    assert received.get(timeout=10) == ("raylet", ["one"])
    add(tmp_path / "raylet.err", "two\n")
    reader.close()
    assert received.get(timeout=10) == ("raylet", ["two"])
    add(tmp_path / "raylet.err", "three\n")
    assert not reader._thread.is_alive()
    assert received.empty()


def test_a_missing_folder_does_not_end_the_reader(tmp_path: Path) -> None:
    received: Queue[str] = Queue()
    reader = LogReader(tmp_path / "later", lambda source, lines: received.put(source))
    (tmp_path / "later").mkdir()
    add(tmp_path / "later" / "raylet.err", "one\n")
    assert received.get(timeout=10) == "raylet"
    reader.close()
