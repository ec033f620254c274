"""Exceptions of other libraries, mapped to `WorkerError` where they leave the backend: those of a request for its
client, those of a load for the operator."""

from __future__ import annotations

import logging

from rbee_serve.errors import (
    ConfigurationError,
    InferenceTimeout,
    InternalError,
    WorkerError,
    WorkerLost,
    WorkerUnhealthy,
)
from rbee_serve.worker.engine_failure import ERRORS, EngineFailure, engine_failure, engine_failure_in, one_line

logger = logging.getLogger(__name__)

_FOR_CLIENTS = {
    EngineFailure.DEVICE_LOST: "the accelerator failed and the worker is being replaced; try again later",
    EngineFailure.NO_VRAM: "the accelerator ran out of memory; reduce the request or try again later",
    EngineFailure.NO_RAM: "the worker ran out of memory; reduce the request or try again later",
    EngineFailure.DEVICE_ERROR: "the accelerator failed on this request; see the worker's log for details",
}
_SMALLER = "choose a smaller or quantised model, or stop other processes"
_FOR_OPERATORS = {
    EngineFailure.DEVICE_LOST: "the accelerator failed while the model was loaded; see the worker's log",
    EngineFailure.NO_VRAM: f"the accelerator ran out of memory while the model was loaded; raise `gpus`, {_SMALLER}",
    EngineFailure.NO_RAM: f"memory ran out while the model was loaded; {_SMALLER}",
    EngineFailure.DEVICE_ERROR: "the accelerator failed while the model was loaded; see the worker's log",
}


def error_from_backend(error: BaseException) -> WorkerError:
    """The `WorkerError` for the client. The details of a foreign exception are logged and never sent.

    A worker that has served is always replaced, so its `WorkerUnhealthy` is the loss of this request, which may be sent
    again.
    """
    if isinstance(error, WorkerUnhealthy):
        return WorkerLost(error.message)
    if isinstance(error, WorkerError):
        return error
    logger.error("a request failed: %s", type(error).__name__, exc_info=error)
    if (failure := engine_failure(error)) is not None:
        return ERRORS[failure](_FOR_CLIENTS[failure])
    if isinstance(error, TimeoutError):
        return InferenceTimeout("the request timed out; reduce it or try again later")
    return InternalError("the worker failed on this request; see its log under the correlation id")


def error_from_load(error: BaseException) -> WorkerError | None:
    """The `WorkerError` for the operator where a load failed for want of memory or by the accelerator; None for any
    other exception. The library's own words are in it: a load has seen no request."""
    if isinstance(error, WorkerError | ConfigurationError):
        return None
    if (failure := engine_failure(error)) is None:
        return None
    return ERRORS[failure](f"{_FOR_OPERATORS[failure]} ({one_line(error)})")


def error_from_exit(status: str, last_line: str) -> WorkerError | ConfigurationError:
    """The error for the operator where the engine's process has ended during the load, with that `status` and that last
    line on its standard error."""
    if status == "SIGKILL":  # it could write nothing about that
        last_line = "Linux kills a process where memory runs out; the kernel's log has the reason"
    message = f"the engine's process ended during the load: {status}"
    failure = engine_failure_in(last_line)
    kind: type[WorkerError] | type[ConfigurationError] = ConfigurationError if failure is None else ERRORS[failure]
    return kind(f"{message} ({last_line})" if last_line else f"{message}; see the worker's log")
