"""The summary after the start: what is served where, what failed and why, and a request to try."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from rbee_serve.client import WorkerDescription, WorkerReadiness
from rbee_serve.config import ApplicationConfig, WorkerConfig
from rbee_serve.content import content_fields
from rbee_serve.request import InferenceRequest
from rbee_serve.worker.registry import import_path, load_spec


def summary(
    descriptions: Sequence[WorkerDescription],
    readiness: Mapping[str, WorkerReadiness],
    config: ApplicationConfig,
    worker_types: Mapping[str, str],
) -> list[str]:
    """A line for each worker, and a request to paste."""
    served = [worker for worker in descriptions if readiness[worker.id].ready]
    failed = [worker for worker in descriptions if not readiness[worker.id].ready]
    rows = [(worker.id, worker.type, worker.model_id, worker.device, worker.url) for worker in served]
    lines = [f"  {row}" for row in columns(rows)]
    for worker in failed:
        lines += [f"  {worker.id}  {worker.type}  {worker.model_id}  FAILED: {readiness[worker.id].reason}"]
    if served:
        first = config.worker(served[0].id)
        assert first is not None
        token_file = config.auth.token_file_for(first.id)
        lines += ["", f"  {request_line(served[0].url, example(first, worker_types), token_file)}"]
    return lines


def example(worker: WorkerConfig, worker_types: Mapping[str, str]) -> InferenceRequest:
    """A small valid request of the worker: its warm-up request."""
    request: InferenceRequest = load_spec(import_path(worker.type, worker.task, worker_types)).warm_up()
    return request


def request_line(url: str, request: InferenceRequest, token_file: Path | None) -> str:
    """A curl command. It contains neither the token nor the content of a file, for which the user has their own."""
    token = f' -H "Authorization: Bearer $(head -n 1 {shlex.quote(str(token_file))})"' if token_file else ""
    fields = request.model_dump(mode="json", exclude_unset=True)
    if files := content_fields(type(request)).keys() & fields.keys():
        parts = (f"{name}=@FILE" if name in files else f"{name}={value}" for name, value in fields.items())
        body = " ".join(f"-F {shlex.quote(part)}" for part in parts)
    else:
        body = f"-d {shlex.quote(json.dumps(fields, ensure_ascii=False))}"
    return f"curl -N{token} {url}/v1/inference {body}"


def columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows with aligned columns, two spaces between them."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
