"""Everything that endpoints use: the configured workers, the cache of their state, the router to them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from rbee_serve.config import LimitsConfig, WorkerConfig
from rbee_serve.errors import WorkerNotFound
from rbee_serve.ingress.router import Router
from rbee_serve.ingress.worker_state_cache import WorkerStateCache
from rbee_serve.request import InferenceRequest
from rbee_serve.state import LoadProgress, WorkerState
from rbee_serve.worker.spec import WorkerSpec


@dataclass(frozen=True)
class Worker:
    """A configured worker in the ingress. `request_type` has the configured limits built in."""

    config: WorkerConfig
    spec: WorkerSpec[Any]
    request_type: type[InferenceRequest]

    @property
    def base(self) -> str:
        """The path prefix of its routes."""
        return f"/workers/{self.config.id}"


@dataclass(frozen=True)
class IngressServices:
    """`workers` are those that a client may address. `base_url` is the URL by which clients reach the server, `port`
    the one that it listens on."""

    workers: dict[str, Worker]
    limits: LimitsConfig
    states: WorkerStateCache
    router: Router
    base_url: str
    port: int
    helpers: dict[str, Worker] = field(default_factory=dict)
    """Further workers, which those in `workers` may use."""
    _views: dict[frozenset[str], IngressServices] = field(default_factory=dict)

    def restricted_to(self, worker_ids: frozenset[str] | None) -> IngressServices:
        """The services for a client that may address these workers only: all others do not exist for it. None stands
        for all."""
        if worker_ids is None:
            return self
        if (view := self._views.get(worker_ids)) is None:
            visible = {worker_id: worker for worker_id, worker in self.workers.items() if worker_id in worker_ids}
            view = self._views[worker_ids] = replace(self, workers=visible, helpers=self.workers, _views={})
        return view

    def worker(self, worker_id: str) -> Worker:
        """The worker of that id. Raises `WorkerNotFound`."""
        if found := self.workers.get(worker_id):
            return found
        raise WorkerNotFound("no worker of that id; GET /v1/workers lists them")

    def find(self, worker_id: str | None, model: str | None) -> Worker | None:
        """The worker of that id, or one that serves that model, a ready one first. If both are given, both must
        match."""
        candidates: Iterable[Worker] = self.workers.values()
        matching = [
            worker
            for worker in candidates
            if worker_id in (None, worker.config.id) and model in (None, worker.config.served_name)
        ]
        return min(matching, key=lambda worker: not self.state(worker).ready, default=None)

    def state(self, worker: Worker) -> WorkerState:
        """The latest state of its replicas."""
        return self.states.worker(worker.config.id)

    def load_progress(self, state: WorkerState) -> LoadProgress | None:
        """The progress of its first loading replica, without the id of a worker that the client may not address."""
        load = state.load
        if load is not None and self.helpers and load.held_by not in self.workers:
            return msgspec.structs.replace(load, held_by=None)
        return load

    def progress_url(self, worker: Worker) -> str:
        """The URL of its load progress."""
        return f"{self.base_url}{worker.base}/v1/loading/progress"

    def require_ready(self, worker: Worker, roles: Iterable[str] = ()) -> None:
        """Raise the `WorkerError` with the reason if the worker, or a helper worker that it uses in one of `roles`,
        takes no requests now."""
        uses, known = worker.config.uses, self.helpers or self.workers
        used = [known[uses[role]] for role in roles if role in uses]
        for needed in (worker, *used):
            self.states.require_ready(needed.config.id, self.progress_url(needed))
