"""What one ready worker does: one response, its rate, and how soon it is free after a cancelled request."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any

from rbee_serve.client import Client
from rbee_serve.errors import WorkerError
from rbee_serve.events import Error, Output
from rbee_serve.outputs import TokenOutput
from rbee_serve.request import InferenceRequest
from rbee_serve.worker.spec import WorkerSpec

SAMPLE_S = 3.0
"""Seconds over which a rate is measured."""
CANCEL_TIMEOUT_S = 30.0
_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Measurement:
    """Seconds, and units per second; None where it was not measured. `memory_bytes` is what the worker's model holds:
    VRAM on a GPU, RAM on a CPU."""

    memory_bytes: int | None = None
    answer_s: float | None = None
    rate: float | None = None
    unit: str = ""
    """Of the rate: `tokens`, `outputs` or `requests`."""
    cancel_s: float | None = None
    failure: str | None = None


def measure(client: Client, worker_id: str, spec: WorkerSpec[Any]) -> Measurement:
    """Send the worker type's own requests: its warm-up request, and its long one, which is cancelled after
    `SAMPLE_S`. A failed request is in the result."""
    try:
        answer_s = _answer_s(client, worker_id, spec.warm_up())
        rate, unit, cancel_s = None, "", None
        if spec.long_request is not None:
            rate, unit, cancel_s = _sample(client, worker_id, spec.long_request())
        if rate is None:
            rate, unit = _requests_per_s(client, worker_id, spec.warm_up()), "requests"
        return Measurement(client.health(worker_id).vram_bytes, answer_s, rate, unit, cancel_s)
    except WorkerError as exc:
        return Measurement(failure=f"{exc.code}: {exc.message}")


def _answer_s(client: Client, worker_id: str, request: InferenceRequest) -> float:
    began = time.monotonic()
    with client.stream(worker_id, request) as events:
        for event in events:
            if isinstance(event, Error):
                raise event.to_exception()
    return time.monotonic() - began


def _requests_per_s(client: Client, worker_id: str, request: InferenceRequest) -> float:
    """One request after another."""
    began = time.monotonic()
    for count in itertools.count(1):
        _answer_s(client, worker_id, request)
        if (seconds := time.monotonic() - began) >= SAMPLE_S:
            return count / seconds
    raise AssertionError


def _sample(client: Client, worker_id: str, request: InferenceRequest) -> tuple[float | None, str, float | None]:
    """Outputs per second between the first and the last one within `SAMPLE_S`, their name, and the seconds from the
    disconnect until the worker is idle; None for a rate from fewer than two outputs, and for a request that was over
    before it could be cancelled."""
    times: list[float] = []
    unit, is_over = "outputs", True
    began = time.monotonic()
    with client.stream(worker_id, request) as events:
        for event in events:
            if isinstance(event, Error):
                raise event.to_exception()
            if isinstance(event, Output):
                times.append(time.monotonic())
                unit = "tokens" if isinstance(event.value, TokenOutput) else unit
            if time.monotonic() - began >= SAMPLE_S:
                is_over = False
                break
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else None
    return rate, unit, None if is_over else _idle_after_s(client, worker_id)


def _idle_after_s(client: Client, worker_id: str) -> float | None:
    """Seconds until no request runs; None if one still does after `CANCEL_TIMEOUT_S`."""
    began = time.monotonic()
    while (seconds := time.monotonic() - began) < CANCEL_TIMEOUT_S:
        replicas = next(worker for worker in client.workers() if worker.id == worker_id).replicas
        if not any(replica.running or replica.engine_requests for replica in replicas):
            return seconds
        time.sleep(_POLL_S)
    return None
