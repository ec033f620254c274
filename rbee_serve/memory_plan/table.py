"""The plan as a table for a terminal, with the sources of its figures below it."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from rbee_serve.gpu_budget import CONTEXT_BYTES
from rbee_serve.memory_plan.needs import Figure
from rbee_serve.memory_plan.plan import MemoryPlan, PlannedGpu, PlannedWorker, Verdict, gib

MIN_WIDTH = 118
"""Columns of the table where the output is no terminal."""

ASSUMED = "*"
"""Behind a figure that is an estimate."""


def print_plan(plan: MemoryPlan, console: Console) -> None:
    """Print a table for each GPU that has workers, then the notes."""
    if not console.is_terminal:
        console.width = max(console.width, MIN_WIDTH)
    for gpu in plan.gpus:
        if gpu.workers:
            console.print(_table(gpu))
    for line in notes(plan):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(gpu: PlannedGpu) -> Table:
    title = f"GPU {gpu.index}: {gpu.size.name}, {gib(gpu.size.usable_bytes)} GiB usable (figures in GiB)"
    table = Table(title=title, title_justify="left", title_style="bold", show_footer=True)
    table.add_column("worker", "together", no_wrap=True)
    shares = sum(planned.share for planned in gpu.workers)
    shared = sum(planned.share_bytes for planned in gpu.workers)
    for name in ("weights", "KV cache", "activations", "CUDA context"):
        table.add_column(name, justify="right")
    table.add_column("sum", gib(gpu.sum_bytes), justify="right")
    table.add_column("share", f"{shares:.2f} = {gib(shared)}", justify="right", no_wrap=True)
    table.add_column("verdict")
    for planned in gpu.workers:
        table.add_row(
            planned.label,
            *(_cell(figure) for _, figure in planned.needs.figures()),
            f"{gib(planned.context_bytes)}{ASSUMED}",
            gib(planned.sum_bytes) + ("+" if planned.needs.unknown else ""),
            f"{planned.share:.2f} = {gib(planned.share_bytes)}",
            verdict_text(planned),
        )
    return table


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "?"
    if not figure.bytes:
        return "-"
    return gib(figure.bytes) + (ASSUMED if figure.assumed else "")


def verdict_text(planned: PlannedWorker) -> str:
    """The verdict with what would fit, or with what is unknown."""
    match planned.verdict:
        case Verdict.FITS:
            return Verdict.FITS.value
        case Verdict.UNKNOWN:
            return f"{Verdict.UNKNOWN.value}: {', '.join(planned.needs.unknown)}"
        case verdict:
            return f"{verdict.value}: {planned.remedy}" if planned.remedy else verdict.value


def notes(plan: MemoryPlan) -> Iterator[str]:
    """A line for each source, those of estimates first."""
    assumed: dict[str, list[str]] = {}
    known: dict[str, list[str]] = {}
    for planned in _each_worker_once(plan):
        for name, figure in planned.needs.figures():
            if figure is not None and figure.bytes:
                found = assumed if figure.assumed else known
                found.setdefault(figure.source, []).append(f"{planned.worker.id} {name}")
    if assumed or known:
        yield f"{ASSUMED} assumed. CUDA context: {gib(CONTEXT_BYTES)} GiB for each process."
    for mark, sources in ((ASSUMED, assumed), (" ", known)):
        for source, figures in sources.items():
            yield f"{mark} {', '.join(figures)}: {source}"


def _each_worker_once(plan: MemoryPlan) -> Iterator[PlannedWorker]:
    workers: dict[str, PlannedWorker] = {}
    for gpu in plan.gpus:
        for planned in gpu.workers:
            workers.setdefault(planned.worker.id, planned)
    yield from workers.values()
