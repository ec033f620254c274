"""What Ray's processes on this machine write into its log folder, line by line as it comes.

Ray has a process for that, which looks at every open file ten times a second: 1 % of a core and 50 MB. This looks at
the sizes of the files, twice a second, in a thread of the supervisor.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.5
"""How often the folder is looked at."""
MOST_BYTES = 1 << 20
"""What is read of one file in one look; the rest comes with the next one."""
LONGEST_LINE = 1 << 16
"""Bytes after which a line is given as it is: progress bars never end theirs."""

_FILE = re.compile(r"worker-.*-(?P<pid>\d+)\.(?:out|err)|(?P<process>raylet|gcs_server)\b.*\.err")
_ACTOR, _TASK, _JOB = b":actor_name:", b":task_name:", b":job_id:"
"""How Ray's own lines in these files begin: whose process this has become, and what it works on."""


@dataclass(slots=True)
class _LogFile:
    source: str
    position: int = 0
    rest: bytes = b""
    """A line that has no end yet."""


class LogFolder:
    """The files of one folder, and how far they have been read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, _LogFile] = {}

    def new_lines(self) -> Iterator[tuple[str, Sequence[str]]]:
        """Whose lines they are (an actor's name as Ray has it, else a process id or name), and the lines that have been
        added since the last call."""
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if match := _FILE.fullmatch(entry.name):
                    file = self._files.setdefault(entry.name, _LogFile(match["pid"] or match["process"]))
                    yield from self._read(file, entry)

    def _read(self, file: _LogFile, entry: os.DirEntry[str]) -> Iterator[tuple[str, Sequence[str]]]:
        size = entry.stat().st_size
        if size < file.position:  # Ray has begun it anew
            file.position, file.rest = 0, b""
        if size == file.position:
            return
        with Path(entry.path).open("rb") as opened:
            opened.seek(file.position)
            added = opened.read(MOST_BYTES)
        file.position += len(added)
        *whole, file.rest = (file.rest + added).split(b"\n")
        if len(file.rest) > LONGEST_LINE:
            whole.append(file.rest)
            file.rest = b""
        lines = []
        for line in whole:
            if line.startswith(_ACTOR):
                file.source = line.removeprefix(_ACTOR).decode(errors="replace")
            elif not line.startswith((_TASK, _JOB)):
                lines.append(line.rstrip(b"\r").decode(errors="replace"))
        if lines:
            yield file.source, lines


class LogReader:
    """Gives `take` the new lines of a folder, with their source, until it is closed."""

    def __init__(self, folder: Path, take: Callable[[str, Sequence[str]], None]) -> None:
        self._folder = LogFolder(folder)
        self._take = take
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rbee-serve-logs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look once more, and no more then."""
        self._closed.set()
        self._thread.join(timeout=POLL_S)

    def _run(self) -> None:
        closing = False
        while not closing:
            closing = self._closed.wait(POLL_S)
            try:
                for source, lines in self._folder.new_lines():
                    self._take(source, lines)
            except OSError:  # a file or the folder is gone; what is there is read with the next look
                continue
