"""Other people's exceptions, translated once, where they leave the backend."""

from __future__ import annotations

import logging

from rbee_serve.errors import (
    CudaError,
    InferenceTimeout,
    InsufficientResources,
    InsufficientVram,
    InternalError,
    WorkerError,
)

logger = logging.getLogger(__name__)


def error_from_backend(error: Exception) -> WorkerError:
    """The `WorkerError` that a client is told of. The details of a foreign one go to the log and nowhere else."""
    if isinstance(error, WorkerError):
        return error
    logger.error("a request failed: %s", type(error).__name__, exc_info=error)
    # torch's own classes are recognised by name: importing torch here would cost every replica seconds.
    names = {kind.__name__ for kind in type(error).__mro__}
    if "OutOfMemoryError" in names:
        return InsufficientVram("the accelerator ran out of memory on this request; ask for less, or try again later")
    if isinstance(error, MemoryError):
        return InsufficientResources("memory ran out on this request; ask for less, or try again later")
    if isinstance(error, TimeoutError):
        return InferenceTimeout("the work was not done in time; ask for less, or try again later")
    if "AcceleratorError" in names or (isinstance(error, RuntimeError) and "CUDA error" in str(error)):
        return CudaError("the accelerator failed on this request; the worker's log has the details")
    return InternalError("the worker failed on this request; its log has the details under the correlation id")
