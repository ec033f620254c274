"""Exceptions of other libraries, mapped to `WorkerError` where they leave the backend."""

from __future__ import annotations

import logging

from rbee_serve.errors import (
    CudaError,
    InferenceTimeout,
    InsufficientResources,
    InsufficientVram,
    InternalError,
    WorkerError,
    WorkerLost,
    WorkerUnhealthy,
)

logger = logging.getLogger(__name__)


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
    # torch's exceptions are recognised by class name: importing torch here would cost every replica seconds.
    names = {kind.__name__ for kind in type(error).__mro__}
    if "OutOfMemoryError" in names:
        return InsufficientVram("the accelerator ran out of memory; reduce the request or try again later")
    if isinstance(error, MemoryError):
        return InsufficientResources("the worker ran out of memory; reduce the request or try again later")
    if isinstance(error, TimeoutError):
        return InferenceTimeout("the request timed out; reduce it or try again later")
    if "AcceleratorError" in names or (isinstance(error, RuntimeError) and "CUDA error" in str(error)):
        return CudaError("the accelerator failed on this request; see the worker's log for details")
    return InternalError("the worker failed on this request; see its log under the correlation id")
