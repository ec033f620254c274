"""The report of a load that failed for good.

It has a URL of its own and is never sent to the ready URL: a receiver that ignores unknown keys would register the
worker as ready.
"""

from __future__ import annotations

from datetime import datetime

from rbee_serve.config import WorkerConfig
from rbee_serve.hub.orchestrator.heartbeat import rfc3339
from rbee_serve.hub.orchestrator.message_schemas import MAX_TEXT, LoadFailure
from rbee_serve.state import ReplicaState


def load_failure_message(
    worker: WorkerConfig, replica: ReplicaState, implementation: str, moment: datetime
) -> LoadFailure:
    """The message for `on_error_url`: which start of which worker has failed, and the reason."""
    reason = replica.error or "the model could not be loaded; see the log of the worker"
    return LoadFailure(
        worker_id=worker.id,
        worker_type=implementation,
        model_ref=worker.model_ref or worker.served_name,
        boot_id=replica.boot_id,
        code=replica.error_code or "INTERNAL",
        message=reason[:MAX_TEXT],
        timestamp=rfc3339(moment),
    )
