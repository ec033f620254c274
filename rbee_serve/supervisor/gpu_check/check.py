"""The trials of a configuration, one after another, and their table."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rbee_serve.config import WorkerConfig
from rbee_serve.memory_plan.facts_finder import FactsFinder
from rbee_serve.supervisor.checks import CheckedConfig
from rbee_serve.supervisor.gpu_check.measurement import Measurement, measure
from rbee_serve.supervisor.gpu_check.trial_config import trial_config, with_helpers
from rbee_serve.supervisor.gpu_check.trial_server import TrialFailed, TrialServer, free_port, trial_server
from rbee_serve.supervisor.memory_report import gpus_here, memory_plan
from rbee_serve.supervisor.summary import columns
from rbee_serve.worker.registry import import_path, load_spec

ALONE, TOGETHER = "alone", "together"
HEADER = ("worker", "trial", "ready after", "memory planned", "memory taken", "response", "rate", "free after cancel")


@dataclass(frozen=True, slots=True)
class Row:
    """One worker in one trial. `ready_s` counts from the start of the server, Ray's start included."""

    worker_id: str
    trial: str
    measurement: Measurement
    ready_s: float | None = None
    planned_bytes: int | None = None

    def cells(self) -> tuple[str, ...]:
        """The cells of the table; the last ones are empty where the worker failed."""
        found = self.measurement
        if found.failure is not None:
            return (self.worker_id, self.trial, "FAILED", *[""] * (len(HEADER) - 3))
        return (
            self.worker_id,
            self.trial,
            _seconds(self.ready_s),
            _gigabytes(self.planned_bytes),
            _gigabytes(found.memory_bytes),
            _seconds(found.answer_s),
            "-" if found.rate is None else f"{found.rate:.3g} {found.unit}/s",
            _seconds(found.cancel_s),
        )


def gpu_check(checked: CheckedConfig, show: Callable[[str], None]) -> int:
    """Run the trials and show a line before each, the table, and every failure with its reason. Returns the exit code:
    0 if every worker was ready and served its requests in both trials, else 1."""
    workers = checked.config.workers
    planned = planned_bytes(checked)
    rows: list[Row] = []
    for worker in workers:
        show(f"{worker.id} alone …")
        rows += _trial(checked, ALONE, with_helpers(worker.id, checked.config), [worker], planned)
    if len(workers) > 1:
        show("all together …")
        rows += _trial(checked, TOGETHER, [worker.id for worker in workers], workers, planned)
    failed = [row for row in rows if row.measurement.failure is not None]
    show("\n".join(["", *columns([HEADER, *(row.cells() for row in rows)]), ""]))
    for row in failed:
        show(f"{row.worker_id} {row.trial}: {row.measurement.failure}")
    return 1 if failed else 0


def _trial(
    checked: CheckedConfig,
    trial: str,
    started: Sequence[str],
    measured: Sequence[WorkerConfig],
    planned: Mapping[str, int],
) -> Iterator[Row]:
    config = trial_config(checked, started, free_port())
    with tempfile.TemporaryDirectory() as folder, trial_server(config, Path(folder)) as server:
        try:
            found = server.wait()
        except TrialFailed as exc:
            yield from (Row(worker.id, trial, Measurement(failure=str(exc))) for worker in measured)
            return
        for worker in measured:
            readiness, seconds = found[worker.id]
            if readiness.ready:
                result = _measured(checked, server, worker)
            else:
                result = Measurement(failure=f"{readiness.code or 'WORKER_UNHEALTHY'}: {readiness.reason}")
            yield Row(worker.id, trial, result, seconds, planned.get(worker.id))


def _measured(checked: CheckedConfig, server: TrialServer, worker: WorkerConfig) -> Measurement:
    spec = load_spec(import_path(worker.type, worker.task, checked.worker_types))
    with server.client(spec.outputs) as client:
        return measure(client, worker.id, spec)


def planned_bytes(checked: CheckedConfig) -> Mapping[str, int]:
    """What the memory plan counts for each worker on the GPUs of this machine, the CUDA context included; all replicas
    and all their GPUs together."""
    found = Counter[str]()
    for gpu in memory_plan(checked, gpus_here(), FactsFinder()).gpus:
        for planned in gpu.workers:
            found[planned.worker.id] += planned.sum_bytes
    return found


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _gigabytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e9:.2f} GB"
