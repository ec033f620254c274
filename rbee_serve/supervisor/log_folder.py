"""The lines that Ray's processes on this machine write into Ray's log folder, as they are written.

Ray's own log monitor does the same in a process of its own, which stats every open file ten times a second, for 1 % of
a core and 50 MB. The idle server takes 10 % of a core (bound: 11 %) and 590 MB beside the models (bound: 600 MB), so
with it both bounds would fail. This reader compares the sizes of the files twice a second, in a thread of the
supervisor.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.5
"""How often the folder is scanned."""
MAX_READ_BYTES = 1 << 20
"""Bytes that one scan reads of one file; the rest follows with the next scan."""
MAX_LINE_BYTES = 1 << 16
"""Bytes after which an unfinished line is passed on: progress bars never end theirs."""

_FILE = re.compile(r"worker-.*-(?P<pid>\d+)\.(?:out|err)|(?P<process>raylet|gcs_server)\b.*\.err")
_ACTOR, _TASK, _JOB = b":actor_name:", b":task_name:", b":job_id:"
"""Prefixes of the lines that Ray itself writes: the actor that the process has become, and its present task."""


@dataclass(slots=True)
class _LogFile:
    source: str
    position: int = 0
    unfinished: bytes = b""
    """The line without an end so far."""


class LogFolder:
    """The files of one folder, and the positions up to which they were read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, _LogFile] = {}

    def new_lines(self) -> Iterator[tuple[str, Sequence[str]]]:
        """The lines that were added since the last call, with their source: the name of an actor in Ray, else the id or
        name of a process."""
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if match := _FILE.fullmatch(entry.name):
                    file = self._files.setdefault(entry.name, _LogFile(match["pid"] or match["process"]))
                    yield from self._read(file, entry)

    def _read(self, file: _LogFile, entry: os.DirEntry[str]) -> Iterator[tuple[str, Sequence[str]]]:
        size = entry.stat().st_size
        if size < file.position:  # Ray has truncated it
            file.position, file.unfinished = 0, b""
        if size == file.position:
            return
        with Path(entry.path).open("rb") as opened:
            opened.seek(file.position)
            added = opened.read(MAX_READ_BYTES)
        file.position += len(added)
        *complete, file.unfinished = (file.unfinished + added).split(b"\n")
        if len(file.unfinished) > MAX_LINE_BYTES:
            complete.append(file.unfinished)
            file.unfinished = b""
        lines = []
        for line in complete:
            if line.startswith(_ACTOR):
                file.source = line.removeprefix(_ACTOR).decode(errors="replace")
            elif not line.startswith((_TASK, _JOB)):
                lines.append(line.rstrip(b"\r").decode(errors="replace"))
        if lines:
            yield file.source, lines


class LogReader:
    """Calls `on_lines` with the new lines of a folder and their source, until it is closed."""

    def __init__(self, folder: Path, on_lines: Callable[[str, Sequence[str]], None]) -> None:
        self._folder = LogFolder(folder)
        self._on_lines = on_lines
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rbee-serve-logs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Scan once more, then stop."""
        self._closed.set()
        self._thread.join(timeout=POLL_S)

    def _run(self) -> None:
        closing = False
        while not closing:
            closing = self._closed.wait(POLL_S)
            try:
                for source, lines in self._folder.new_lines():
                    self._on_lines(source, lines)
            except OSError:  # a file or the folder has gone; the rest is read with the next scan
                continue
