"""What the endpoints work with: the configured workers, the view of their state, the router to them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rbee_serve.config import LimitsConfig, WorkerConfig
from rbee_serve.errors import WorkerNotFound
from rbee_serve.ingress.router import Router
from rbee_serve.ingress.worker_state_cache import WorkerStateCache
from rbee_serve.request import InferenceRequest
from rbee_serve.state import WorkerState
from rbee_serve.worker.spec import WorkerSpec


@dataclass(frozen=True)
class Worker:
    """A configured worker as the ingress sees it. `request_type` has the configured limits built in."""

    config: WorkerConfig
    spec: WorkerSpec[Any]
    request_type: type[InferenceRequest]

    @property
    def base(self) -> str:
        """The path under which it is reached."""
        return f"/workers/{self.config.id}"


@dataclass(frozen=True)
class IngressServices:
    """Everything that an endpoint may use. `base_url` is how clients reach the server, `port` where it listens."""

    workers: dict[str, Worker]
    limits: LimitsConfig
    view: WorkerStateCache
    router: Router
    base_url: str
    port: int

    def worker(self, worker_id: str) -> Worker:
        """The worker of that id. Raises `WorkerNotFound`."""
        if found := self.workers.get(worker_id):
            return found
        raise WorkerNotFound("no worker of that id; GET /v1/workers lists them")

    def find(self, worker_id: str | None, model: str | None) -> Worker | None:
        """The worker of that id, or one that serves that model, a ready one first. Both given, both must fit."""
        named: Iterable[Worker] = self.workers.values()
        fitting = [
            worker
            for worker in named
            if worker_id in (None, worker.config.id) and model in (None, worker.config.served_name)
        ]
        return min(fitting, key=lambda worker: not self.state(worker).ready, default=None)

    def state(self, worker: Worker) -> WorkerState:
        """What is known of its replicas."""
        return self.view.worker(worker.config.id)

    def progress_url(self, worker: Worker) -> str:
        """Where its load can be followed."""
        return f"{self.base_url}{worker.base}/v1/loading/progress"

    def require_ready(self, worker: Worker, roles: Iterable[str] = ()) -> None:
        """Raise the `WorkerError` that says why it takes no request now, if so; or one of those that it calls in these
        roles."""
        used = [self.workers[worker.config.uses[role]] for role in roles if role in worker.config.uses]
        for needed in (worker, *used):
            self.view.require_ready(needed.config.id, self.progress_url(needed))
