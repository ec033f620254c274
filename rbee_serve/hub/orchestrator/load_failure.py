"""The report of a load that failed for good.

It has a URL of its own and never goes to the ready URL: a receiver that skips keys which it does not know would take it
for a worker that is ready.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rbee_serve.config import WorkerConfig
from rbee_serve.hub.orchestrator.heartbeat import rfc3339
from rbee_serve.state import ReplicaState


def load_failure_message(
    worker: WorkerConfig, replica: ReplicaState, implementation: str, moment: datetime
) -> dict[str, Any]:
    """What is POSTed to `on_error_url`: which start of which worker has failed, and the sentence that says why."""
    return {
        "worker_id": worker.id,
        "worker_type": implementation,
        "model_ref": worker.model_ref or worker.served_name,
        "boot_id": replica.boot_id,
        "code": replica.error_code or "INTERNAL",
        "message": replica.error or "the model could not be loaded; the log of the worker says why",
        "timestamp": rfc3339(moment),
    }
