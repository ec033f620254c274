"""The child process of a `BackendProcess`: loads the backend and runs its requests."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from rbee_serve import correlation
from rbee_serve.errors import ConfigurationError, WorkerError
from rbee_serve.replica import backend_messages as messages
from rbee_serve.replica.backend_messages import FromBackend, ToBackend
from rbee_serve.replica.foreign_errors import error_from_backend, error_from_load
from rbee_serve.request import InferenceRequest
from rbee_serve.state import LoadProgress
from rbee_serve.transport.cancellation import is_own_cancellation
from rbee_serve.transport.framing import FramedConnection
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.cuda_memory import torch_cuda_bytes
from rbee_serve.worker.device import set_threads
from rbee_serve.worker.engine_failure import EngineFailure, engine_failure
from rbee_serve.worker.memory import MemoryGauge
from rbee_serve.worker.model_code import without_stop_iteration
from rbee_serve.worker.registry import load_spec
from rbee_serve.worker.spec import LoadContext
from rbee_serve.worker.watchdog import Watchdog

logger = logging.getLogger(__name__)

HEALTH_PERIOD_S = 1.0
"""How often the process checks its backend's health, and reports its memory."""

PARENT_PERIOD_S = 1.0
"""How often the process checks that its parent, the replica, is alive."""

CLOSE_TIMEOUT_S = 4
"""How long the backend may take to close before the process is ended."""


class BackendServer:
    """Serves one connection to the replica, until that is closed."""

    def __init__(self, spec_path: str, watchdog: Watchdog) -> None:
        self._spec_path = spec_path
        self._watchdog = watchdog
        self._backend: InferenceBackend[Any, Any] | None = None
        self._device_lost = False
        self._loading: asyncio.Task[None]
        self._memory: Callable[[], int] = lambda: 0
        self._reported_bytes = 0
        self._gpu_held = threading.Event()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._credits: dict[int, asyncio.Semaphore] = {}
        self._connection: FramedConnection[ToBackend] = FramedConnection(ToBackend, self._on_message, self._on_close)

    async def run(self, connected: socket.socket) -> None:
        """Serve the connection. Does not return: the process exits."""
        await asyncio.get_running_loop().create_connection(lambda: self._connection, sock=connected)
        while self._backend is None or (self._backend.is_healthy() and not self._device_lost):
            self._report_memory()
            await asyncio.sleep(HEALTH_PERIOD_S)  # polled: no backend notifies
        if self._device_lost:
            logger.error("the process cannot use its accelerator any more; it exits, and the worker is replaced")
            os._exit(messages.DEVICE_LOST_STATUS)
        logger.error("the engine is dead; its process exits, and the worker is replaced")
        os._exit(1)

    def _on_message(self, message: ToBackend) -> None:
        match message:
            case messages.Load(context):
                self._loading = asyncio.create_task(self._load(context))
            case messages.GpuHeld():
                self._gpu_held.set()
            case messages.Execute(stream_id, request, correlation_id):
                self._credits[stream_id] = asyncio.Semaphore(messages.WINDOW)
                task = asyncio.create_task(self._execute(stream_id, messages.decode(request), correlation_id))
                self._tasks[stream_id] = task
                task.add_done_callback(lambda _: self._forget(stream_id))  # also if cancelled before its first step
            case messages.Cancel(stream_id) if stream_id in self._tasks:
                self._tasks[stream_id].cancel()
            case messages.Grant(stream_id) if stream_id in self._tasks:
                for _ in range(messages.WINDOW // 2):
                    self._credits[stream_id].release()

    def _on_close(self) -> None:
        # The socket stays open until the process exits.
        signal.alarm(CLOSE_TIMEOUT_S)  # its default action ends the process, even if the backend never returns
        if self._backend is not None:
            self._backend.close()
        os._exit(0)

    async def _load(self, pickled_context: bytes) -> None:
        worker, device = messages.decode(pickled_context)
        if device.accelerator == "cuda":
            self._memory = MemoryGauge(torch_cuda_bytes, HEALTH_PERIOD_S / 2)
        loop = asyncio.get_running_loop()

        def report(progress: LoadProgress) -> None:
            loop.call_soon_threadsafe(self._send, messages.Loading(messages.encode_progress(progress)))

        def wait_for_gpu() -> None:
            loop.call_soon_threadsafe(self._send, messages.WaitForGpu())
            self._gpu_held.wait()

        try:
            load = without_stop_iteration(load_spec(self._spec_path).load)
            context = LoadContext(worker, device, report, self._watchdog, wait_for_gpu=wait_for_gpu)
            backend = await asyncio.to_thread(load, context)
            set_threads(worker)
        except Exception as exc:
            if not isinstance(exc, ConfigurationError | WorkerError):
                logger.error("the model could not be loaded", exc_info=exc)  # the pickled exception has no traceback
            self._send(messages.Loaded(_encoded_error(error_from_load(exc) or exc)))
            return
        self._backend = backend
        self._send(messages.Loaded())

    async def _execute(self, stream_id: int, request: InferenceRequest, correlation_id: str | None) -> None:
        correlation.enter(correlation.accept(correlation_id))
        assert self._backend is not None
        try:
            stream: Any = self._backend.execute(request)  # an async generator, as of every backend
            async with aclosing(stream) as events:
                async for event in events:
                    await self._credits[stream_id].acquire()
                    self._send(messages.Item(stream_id, messages.encode(event)))
            self._send(messages.Closed(stream_id))
        except (Exception, asyncio.CancelledError) as exc:
            if is_own_cancellation(exc):
                raise
            self._device_lost |= engine_failure(exc) is EngineFailure.DEVICE_LOST
            self._send(messages.Closed(stream_id, messages.encode(error_from_backend(exc))))

    def _report_memory(self) -> None:
        if (held := self._memory()) != self._reported_bytes:
            self._send(messages.Memory(held))
            self._reported_bytes = held

    def _send(self, message: FromBackend) -> None:
        self._connection.send(message)

    def _forget(self, stream_id: int) -> None:
        del self._tasks[stream_id], self._credits[stream_id]


def _encoded_error(error: Exception) -> bytes:
    """The pickled exception, or one with its name and message if it cannot be pickled and unpickled."""
    try:
        data = messages.encode(error)
        messages.decode(data)
    except Exception:  # a foreign exception's constructor may raise anything
        return messages.encode(RuntimeError(f"{type(error).__name__}: {error}"))
    return data


def _exit_with(parent: int) -> None:
    """End the process with its parent, even if the backend blocks the event loop, which then does not notice the closed
    connection."""
    while os.getppid() == parent:
        time.sleep(PARENT_PERIOD_S)
    time.sleep(CLOSE_TIMEOUT_S)  # an event loop that is not blocked closes the backend meanwhile
    os._exit(1)


def main(spec_path: str, connection: str, cells: str, parent: str) -> None:
    """Run the process: the import string of its `WorkerSpec`, the file descriptors of connection and watchdog, and the
    process id of its parent."""
    threading.Thread(target=_exit_with, args=(int(parent),), name="parent-watch", daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the server, which ends this process
    correlation.configure_logging(logging.WARNING)
    watchdog = Watchdog(0.0)
    watchdog.share(messages.watchdog_cells(int(cells)))
    asyncio.run(BackendServer(spec_path, watchdog).run(socket.socket(fileno=int(connection))))


if __name__ == "__main__":
    main(*sys.argv[1:])
