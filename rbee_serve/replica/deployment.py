"""The Ray Serve deployment of a worker: one replica is one loaded model.

The ingress sends requests over a connection to the endpoint that `reach` returns, and receives bytes: SSE frames or
documents. Python users call `stream_events` and `collect` instead and get typed events and a typed result.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

import msgspec
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from rbee_serve import correlation
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError, WorkerError, WorkerLoading, WorkerUnhealthy
from rbee_serve.events import Event
from rbee_serve.ray_boundary import listen_address
from rbee_serve.replica.event_stream import frames
from rbee_serve.replica.idle_trim import trim_while_idle
from rbee_serve.replica.loading import load, pause_before_retry, reason
from rbee_serve.replica.peers import peer
from rbee_serve.replica.reporter import Reporter
from rbee_serve.replica.service import WorkerService
from rbee_serve.request import InferenceRequest, new_id
from rbee_serve.result import Result, collect
from rbee_serve.state import LoadProgress, Phase, ReplicaState, invalid_field
from rbee_serve.transport.handshake import Endpoint
from rbee_serve.transport.refusal import refusal
from rbee_serve.transport.request_messages import ResponseChunk
from rbee_serve.transport.request_server import RequestServer
from rbee_serve.transport.state_client import StateClient
from rbee_serve.validation.parse import parse_object
from rbee_serve.worker.device import choose_device, device_indices, set_threads
from rbee_serve.worker.registry import load_spec
from rbee_serve.worker.spec import Device, LoadContext
from rbee_serve.worker.watchdog import Watchdog

logger = logging.getLogger(__name__)

DRAIN_S = 10.0
"""How long a stopping replica waits for its requests; Serve kills it after fifteen seconds."""


class WorkerReplica:
    """A loaded model behind admission, ordered events and state reports."""

    # Ray Serve awaits a constructor that is a coroutine; mypy does not know that anybody would.
    async def __init__(  # type: ignore[misc]
        self,
        worker: WorkerConfig,
        spec_path: str,
        hub: DeploymentHandle[Any],
        peers: Mapping[str, DeploymentHandle[Any]],
    ) -> None:
        correlation.configure_logging()
        self._worker = worker
        self._peers = {role: peer(worker.uses[role], handle) for role, handle in peers.items()}
        self._replica_id = serve.get_replica_context().replica_tag
        self._node = str(ray.util.get_node_ip_address())
        self._boot_id = new_id("boot")
        self._phase: Phase = "loading"
        self._progress = LoadProgress(stage="starting")
        self._failure: tuple[str, str] | None = None
        self._device = Device("cpu" if worker.backend == "auto" else worker.backend)
        self._indices: tuple[int, ...] = (0,)
        self._service: WorkerService | None = None
        self._request_server = RequestServer(self._respond)
        self._hub = StateClient(partial(hub.reach.remote, ray.get_runtime_context().get_node_id()))
        self._reporter = Reporter(self._observe, self._hub.push)
        self._reporter.start()
        try:
            self._service = await self._load(spec_path)
            self._serving_state(self._service)
            self._require_no_failure()
        except Exception as exc:
            self._fail(exc)
            await self._reporter.push_now()
            await self._reporter.stop()
            await pause_before_retry(self._hub.watch, worker.id)
            raise
        self._phase = "ready"
        self._trimming = asyncio.create_task(trim_while_idle(self._service.admission))
        await self._reporter.push_now()

    async def _load(self, spec_path: str) -> WorkerService:
        spec = load_spec(spec_path)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        self._device = choose_device(self._worker, spec, self._gpu_ids(), visible)
        self._indices = await device_indices(self._device)
        watchdog = Watchdog(self._worker.hang_timeout_on(self._device.accelerator))
        backend = await load(
            spec_path, spec, LoadContext(self._worker, self._device, self._report, watchdog, self._peers)
        )
        set_threads(self._worker)
        return WorkerService(self._worker, spec, backend, watchdog, self._reporter.changed)

    async def reach(self, node_id: str) -> AsyncGenerator[Endpoint, None]:
        """The endpoint for an ingress on that node. The call stays open until it is cancelled, so Ray Serve counts
        it."""
        yield await self._request_server.acceptor.endpoint(*listen_address(node_id))
        await asyncio.Event().wait()

    async def _respond(self, fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
        """SSE frames, or one document for `stream: false`. A refused request gets one `error` frame without a `started`
        before it."""
        service = self._ready_service()
        try:
            request = parse_object(service.request_type, fields, strict=False)  # the ingress has validated it
            events = service.events(request)
            if request.stream:
                async with aclosing(frames(events)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            else:
                document = await service.encode_result(request, await collect(events, service.spec.outputs))
                yield bytes(document.data), True, document.media_type
        except WorkerError as exc:
            yield refusal(exc)

    async def stream_events(
        self, request: InferenceRequest | dict[str, Any], correlation_id: str | None = None
    ) -> AsyncIterator[Event[Any]]:
        """Typed events for Python users and other workers, in the order of `rbee_serve.grammar`.

        Raises the `WorkerError` that prevents the work before the first event; a later failure is an `Error` event.
        """
        correlation.enter(correlation.accept(correlation_id))
        async with aclosing(self._ready_service().events(self._check(request))) as events:
            async for event in events:
                yield event

    async def collect(self, request: InferenceRequest | dict[str, Any]) -> Result:
        """One typed result for Python users. Raises the `WorkerError` that the request ended with."""
        correlation.enter(correlation.accept(None))
        service = self._ready_service()
        return await collect(service.events(self._check(request)), service.spec.outputs)

    async def check_health(self) -> None:
        """Called by Ray Serve; raising makes it replace this replica."""
        self._require_no_failure()
        if self._service is not None and (fault := self._service.fault()) is not None:
            await self._reporter.push_now()
            self._service.give_up()
            raise WorkerUnhealthy(f"worker {self._worker.id}: {fault}; this replica is being replaced")

    async def __del__(self) -> None:
        """Called by Ray Serve when the replica stops gracefully."""
        self._phase = "stopping"
        await self._reporter.push_now()
        await self._request_server.close(DRAIN_S)
        await self._reporter.stop()
        self._hub.close()
        if self._service is not None:
            await asyncio.to_thread(self._service.backend.close)

    def _ready_service(self) -> WorkerService:
        if self._service is None:  # Ray Serve sends no request before the constructor is done
            raise WorkerLoading(f"worker {self._worker.id} is still loading")
        return self._service

    def _check(self, request: InferenceRequest | dict[str, Any]) -> InferenceRequest:
        fields = request if isinstance(request, dict) else request.model_dump(exclude_unset=True)
        return parse_object(self._ready_service().request_type, fields)

    def _gpu_ids(self) -> list[str]:
        return [str(gpu) for gpu in ray.get_runtime_context().get_accelerator_ids().get("GPU", [])]

    def _report(self, progress: LoadProgress) -> None:
        """Called in the thread of the load, or in one of the engine's."""
        if invalid := invalid_field(progress):
            self._fail(self._invalid("load progress", invalid))
        else:
            self._progress = progress
        self._reporter.changed_in_thread()

    def _fail(self, error: Exception) -> None:
        """The replica has failed for good, at its load or later. The first error is kept."""
        if self._failure is None:
            logger.error("worker %s has failed", self._worker.id, exc_info=error)
            self._failure = reason(error, self._worker.id, loaded=self._phase == "ready")
            self._phase = "error"

    def _require_no_failure(self) -> None:
        if self._failure is not None:
            raise WorkerUnhealthy(self._failure[1])

    def _invalid(self, what: str, invalid: str) -> ConfigurationError:
        return ConfigurationError(
            f"worker {self._worker.id}: its backend reports {what} with a value of the wrong type: {invalid}"
        )

    def _observe(self) -> ReplicaState:
        if self._service is not None and self._failure is None:
            try:
                return self._serving_state(self._service)
            except Exception as exc:
                self._fail(exc)
        state = self._base_state()
        if self._failure is not None:
            return msgspec.structs.replace(state, error_code=self._failure[0], error=self._failure[1])
        return msgspec.structs.replace(state, load=self._progress)

    def _serving_state(self, service: WorkerService) -> ReplicaState:
        """The state with the backend's values. Raises `ConfigurationError` for one that the hub could not decode."""
        backend, admission, age_s = service.backend, service.admission, service.watchdog.last_progress_age_s
        fault = service.fault()
        state = msgspec.structs.replace(
            self._base_state(),
            healthy=fault is None,
            error=fault,
            running=admission.running,
            queued=admission.queued,
            capacity=admission.capacity,
            engine_requests=backend.engine_requests(),
            last_progress_age_s=None if age_s is None else int(age_s),
            memory_bytes=backend.memory_bytes(),
            memory_source=backend.memory_source(),
        )
        if invalid := invalid_field(state):
            raise self._invalid("a state", invalid)
        return state

    def _base_state(self) -> ReplicaState:
        return ReplicaState(
            worker_id=self._worker.id,
            replica_id=self._replica_id,
            boot_id=self._boot_id,
            phase=self._phase,
            backend=self._device.accelerator,
            devices=self._indices,
            node=self._node,
        )
