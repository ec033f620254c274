"""A running vLLM engine, and what its end means for its requests."""

from __future__ import annotations

from typing import Any

from deployments.vllm_runtime.engine_socket import EngineSocket
from rbee_serve.errors import WorkerError, WorkerLost
from rbee_serve.worker.engine_failure import ERRORS, EngineFailure, engine_failure_in

_WHY = {
    EngineFailure.NO_VRAM: "GPU memory ran out",
    EngineFailure.NO_RAM: "memory ran out",
    EngineFailure.DEVICE_LOST: "the accelerator failed",
    EngineFailure.DEVICE_ERROR: "the accelerator failed",
}


class RunningEngine:
    """An `AsyncLLM` and the socket of its processes."""

    def __init__(self, llm: Any, engine_socket: EngineSocket) -> None:
        self.llm = llm
        """The `AsyncLLM`."""
        self._socket = engine_socket

    @property
    def alive(self) -> bool:
        """False once one of the engine's processes has ended."""
        return not self.llm.errored

    def why_dead(self) -> str:
        """Why it has ended: a clause for operators, without the text of an exception, which may quote a request."""
        words = self._socket.failure()
        if words is None:
            return "its engine is dead"
        failure = engine_failure_in(words)
        reason = words.partition(":")[0] if failure is None else _WHY[failure]
        return f"its engine has ended: {reason}; see the worker's log"

    def error(self) -> WorkerError:
        """The error of the requests that it had when it ended."""
        failure = engine_failure_in(self._socket.failure() or "")
        if failure is EngineFailure.NO_VRAM or failure is EngineFailure.NO_RAM:
            return ERRORS[failure](
                "the inference engine ran out of memory with the request on it and is being replaced; reduce the"
                " request or try again in a moment"
            )
        return WorkerLost(
            "the inference engine died with the request on it and is being replaced; try again in a moment"
        )

    def close(self) -> None:
        """End the engine's processes."""
        self.llm.shutdown()
        self._socket.close()
