"""The status routes. Each translates between HTTP and the services, and decides nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rbee_serve.errors import WorkerLoading, WorkerUnhealthy
from rbee_serve.ingress.auth import visible
from rbee_serve.ingress.event_response import EventResponse
from rbee_serve.ingress.services import IngressServices, Worker
from rbee_serve.ingress.worker_state_cache import why_not_ready
from rbee_serve.sse import DONE, KEEP_ALIVE, frame
from rbee_serve.state import ReplicaState
from rbee_serve.worker_info import worker_info

_RETRY_LATER = {"Retry-After": str(WorkerLoading.retry_after_s)}


class Endpoints:
    """Bound to the services of one ingress replica."""

    def __init__(self, services: IngressServices) -> None:
        self._services = services

    async def ingress_health(self, request: Request) -> Response:
        """`GET /health`: the ingress is alive."""
        return JSONResponse({"status": "healthy"})

    async def all_ready(self, request: Request) -> Response:
        """`GET /v1/ready`: whether all workers are ready, and the reason for each that is not."""
        services = visible(request.scope, self._services)
        workers = [_readiness(worker, services) for worker in services.workers.values()]
        ready = all(worker["ready"] for worker in workers)
        body = {"ready": ready, "workers": workers}
        if ready:
            return JSONResponse(body)
        given_up = any(worker["state"] == "error" for worker in workers)
        return JSONResponse(body, 503, None if given_up else _RETRY_LATER)

    async def list_workers(self, request: Request) -> Response:
        """`GET /v1/workers`: every worker's `/info`, URL, capabilities, limits, and the state of its replicas."""
        workers = visible(request.scope, self._services).workers.values()
        return JSONResponse({"workers": [self._description(worker) for worker in workers]})

    async def worker_health(self, request: Request) -> Response:
        """`GET {base}/health`: 200 with the memory that the model holds, while it loads for the first time too; 503
        while it is being replaced, with `Retry-After`, and once it has failed for good."""
        state = self._services.state(self._named(request))
        comes = state.availability == "loading"
        healthy = bool(state.serving) or (comes and not state.was_ready)
        body: dict[str, Any] = {"status": "healthy" if healthy else "unhealthy", "vram_bytes": state.memory_bytes}
        if state.memory_source is not None:
            body["vram_source"] = state.memory_source
        return JSONResponse(body, 200 if healthy else 503, _RETRY_LATER if comes and not healthy else None)

    async def worker_ready(self, request: Request) -> Response:
        """`GET {base}/v1/ready`: always 200; the answer is in `ready`."""
        worker = self._named(request)
        state = self._services.state(worker)
        body: dict[str, Any] = {"ready": state.ready, "state": state.availability}
        if state.availability == "loading":
            body["progress_url"] = self._services.progress_url(worker)
        if state.serving:
            body["model_loaded"] = True
        return JSONResponse(body)

    async def worker_info(self, request: Request) -> Response:
        """`GET {base}/info`."""
        return JSONResponse(self._info(self._named(request)))

    async def loading_progress(self, request: Request) -> Response | EventResponse:
        """`GET {base}/v1/loading/progress`: SSE while a replica loads or is going to, else 503."""
        services = visible(request.scope, self._services)
        worker = services.worker(request.path_params["worker_id"])
        state = services.state(worker)
        if state.serving:
            raise WorkerUnhealthy(
                f"worker {worker.config.id} has loaded, so there is no progress to follow; send it requests"
            )
        if state.availability == "error":
            raise why_not_ready(state, services.progress_url(worker))
        return EventResponse(_loading(worker, services))

    def _named(self, request: Request) -> Worker:
        return visible(request.scope, self._services).worker(request.path_params["worker_id"])

    def _info(self, worker: Worker) -> dict[str, Any]:
        return worker_info(worker.config, self._services.state(worker), self._services.port, worker.spec.name)

    def _description(self, worker: Worker) -> dict[str, Any]:
        schema = worker.request_type.model_json_schema()
        return {
            **self._info(worker),
            "url": self._services.base_url + worker.base,
            "type": worker.spec.name,
            "task": worker.spec.task,
            "outputs": [output.wire_name() for output in worker.spec.outputs],
            "capacity": worker.config.max_ongoing_requests or worker.spec.default_max_ongoing_requests,
            "replicas": [_replica(replica) for replica in self._services.state(worker).replicas],
            "limits": {name: limits for name, field in schema["properties"].items() if (limits := _limits(field))},
        }


def _readiness(worker: Worker, services: IngressServices) -> dict[str, Any]:
    state = services.state(worker)
    readiness: dict[str, Any] = {"id": worker.config.id, "ready": state.ready, "state": state.availability}
    if not state.ready or (state.degraded and state.lost is not None):
        readiness["reason"] = state.reason
    if not state.ready and state.error_code is not None:
        readiness["code"] = state.error_code
    if (load := services.load_progress(state)) is not None:
        readiness["progress"] = msgspec.to_builtins(load)
    return readiness


async def _loading(worker: Worker, services: IngressServices) -> AsyncGenerator[bytes, None]:
    """One frame for each change of the load, until `{"stage":"ready"}` or `{"stage":"error"}` and the marker. A failed
    attempt does not end it while another one follows."""
    sent: bytes | None = None
    async for state in services.states.changes(worker.config.id, max_wait_s=10.0):
        if state.availability != "loading":
            last = {"stage": "ready"} if state.serving else {"stage": "error", "message": state.reason}
            yield frame(msgspec.json.encode(last)) + DONE
            return
        load = services.load_progress(state)
        progress = msgspec.json.encode(load) if load else sent
        yield frame(progress) if progress and progress != sent else KEEP_ALIVE
        sent = progress


def _replica(replica: ReplicaState) -> dict[str, Any]:
    """One replica for `GET /v1/workers`; unknown values are left out."""
    names = (
        "phase", "healthy", "node", "devices", "running", "queued", "capacity", "engine_requests",
        "last_progress_age_s",
    )  # fmt: skip
    return {name: value for name in names if (value := getattr(replica, name)) is not None}


def _limits(field: dict[str, Any]) -> dict[str, Any]:
    """The bounds in a field's JSON schema, also of a field that may be null."""
    names = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "maxItems", "enum")
    options = [field, *field.get("anyOf", ())]
    return {name: option[name] for option in options for name in names if name in option}
