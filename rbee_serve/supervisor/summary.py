"""What is said when the start is over: what is served where, what failed and why, and a line to try it with."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from rbee_serve.config import ApplicationConfig, WorkerConfig
from rbee_serve.content import content_fields
from rbee_serve.request import InferenceRequest
from rbee_serve.supervisor.readiness import WorkerInfo, WorkerReadiness
from rbee_serve.worker.registry import import_path, load_spec


def summary(
    infos: Sequence[WorkerInfo],
    readiness: Mapping[str, WorkerReadiness],
    config: ApplicationConfig,
    worker_types: Mapping[str, str],
) -> list[str]:
    """A line per worker, and a request that can be pasted."""
    served = [info for info in infos if readiness[info.id].ready]
    failed = [info for info in infos if not readiness[info.id].ready]
    lines = [f"  {row}" for row in columns((info.id, info.type, info.model, info.device, info.url) for info in served)]
    for info in failed:
        lines += [f"  {info.id}  {info.type}  {info.model}  FAILED: {readiness[info.id].reason}"]
    if served:
        worker = config.worker(served[0].id)
        assert worker is not None
        lines += ["", f"  {request_line(served[0].url, example(worker, worker_types), config.auth.token_file)}"]
    return lines


def example(worker: WorkerConfig, worker_types: Mapping[str, str]) -> InferenceRequest:
    """A small request that the worker understands: the one that it was warmed up with."""
    request: InferenceRequest = load_spec(import_path(worker.type, worker.task, worker_types)).warm_up()
    return request


def request_line(url: str, request: InferenceRequest, token_file: Path | None) -> str:
    """A curl command. The token itself is not in it, nor is the content of a file, which is to be the reader's own."""
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
