"""The exception that ends a process of a vLLM engine, sent to the replica.

vLLM logs it in that process and raises `Engine core initialization failed. See root cause above.` in the replica, or
an `EngineDeadError` while requests run.
"""

from __future__ import annotations

import logging

from deployments.vllm_runtime.engine_socket import send_failure
from rbee_serve.worker.engine_failure import one_line

FATAL = {
    "vllm.v1.engine.core": ("EngineCore failed to start", "EngineCore encountered a fatal error"),
    "vllm.v1.executor.multiproc_executor": ("WorkerProc failed",),
}
"""How vLLM's messages about such an exception begin, by logger. Others of these loggers are about one request."""


class FailureHandler(logging.Handler):
    """Sends the exception of a record whose message begins with one of `beginnings`."""

    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__(logging.ERROR)
        self._beginnings = beginnings

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and str(record.msg).startswith(self._beginnings):
            send_failure(one_line(error))


def report_failures() -> None:
    """Have vLLM's processes report: to be called in each of them, once, after vLLM has configured its loggers."""
    for name, beginnings in FATAL.items():
        logging.getLogger(name).addHandler(FailureHandler(beginnings))
