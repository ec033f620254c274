"""The progress of the start: live bars on a terminal, else a line for each change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from rbee_serve.client import WorkerReadiness
from rbee_serve.supervisor.load_progress import Load


class Display(Protocol):
    """Shows the progress until everything is up."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> None: ...

    def step(self, text: str) -> None:
        """The present step of the supervisor."""

    def line(self, text: str) -> None:
        """A line that stays on the screen."""

    def workers(self, workers: Mapping[str, WorkerReadiness], hints: Mapping[str, str]) -> None:
        """The present state of every worker, and Ray Serve's hints about those that wait."""


def make_display(console: Console) -> Display:
    """Bars on a terminal, else lines."""
    return BarDisplay(console) if console.is_terminal else LineDisplay(console)


class LineDisplay:
    """One line for each change, for logs: a new stage, each quarter of a known amount, the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def step(self, text: str) -> None:
        """One line."""
        self.line(text)

    def line(self, text: str) -> None:
        """The text, unchanged."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def workers(self, workers: Mapping[str, WorkerReadiness], hints: Mapping[str, str]) -> None:
        """A line for each worker that has changed."""
        for worker in workers.values():
            text = describe(worker, hints.get(worker.id, ""))
            load = load_of(worker)
            progress = f"{load.stage} {4 * load.done // load.total}" if load and load.total else text
            if self._shown.get(worker.id) != (key := text if worker.ready or worker.failed else progress):
                self._shown[worker.id] = key
                self.line(f"{worker.id}: {text}")


class BarDisplay:
    """A line with a bar for each worker, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.fields[name]}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._rows: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._progress.stop()

    def step(self, text: str) -> None:
        """The row of the supervisor, until the workers have rows of their own."""
        self._row("rbee-serve", text, 0, 0)

    def line(self, text: str) -> None:
        """Above the bars."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def workers(self, workers: Mapping[str, WorkerReadiness], hints: Mapping[str, str]) -> None:
        """A row for each worker."""
        if "rbee-serve" in self._rows:
            self._progress.remove_task(self._rows.pop("rbee-serve"))
        for worker in workers.values():
            load = load_of(worker) or Load("")
            done, total = (1, 1) if worker.ready or worker.failed else (load.done, load.total)
            self._row(worker.id, describe(worker, hints.get(worker.id, "")), done, total)

    def _row(self, name: str, text: str, done: int, total: int) -> None:
        if name not in self._rows:
            self._rows[name] = self._progress.add_task(text, total=None, name=name)
        self._progress.update(self._rows[name], description=text, completed=done, total=total or None)


def describe(worker: WorkerReadiness, hint: str = "") -> str:
    """The state of a worker in a few words."""
    if worker.ready:
        return "ready"
    if worker.failed:
        return f"failed: {worker.reason}"
    if load := load_of(worker):
        return " ".join(part for part in (load.stage, load.amount) if part)
    return hint or "starting"


def load_of(worker: WorkerReadiness) -> Load | None:
    """How far the worker's load is, if it reports that."""
    return Load.of(worker.progress) if worker.progress else None
