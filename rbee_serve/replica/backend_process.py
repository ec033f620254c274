"""A backend in a process of its own, as its replica sees it.

For engines that release the GIL many times per second: in the replica's process each release lets the event loop or one
of Ray's threads take the GIL, and the engine waits to get it back.

    replica                                   process (backend_server)
    BackendProcess.execute   -- request -->   the worker type's own backend
                             <-- events, memory --
    LoadContext.report       <-- progress --  load
    LoadContext.wait_for_gpu <-- request --   load, which continues after the response
    LoadContext.watchdog     == shared memory ==
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any, Self

from rbee_serve import correlation
from rbee_serve.errors import WorkerLost
from rbee_serve.events import Event
from rbee_serve.replica import backend_messages as messages
from rbee_serve.replica.backend_messages import FromBackend, ToBackend
from rbee_serve.replica.foreign_errors import error_from_exit
from rbee_serve.replica.stderr_tail import StderrTail
from rbee_serve.request import InferenceRequest
from rbee_serve.state import LoadProgress, MemorySource
from rbee_serve.transport.framing import FramedConnection
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.memory import memory_gauge
from rbee_serve.worker.spec import LoadContext

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 5.0
"""How long the process may take to close its backend and exit; then it is killed."""
EXIT_TIMEOUT_S = 0.5
"""How long it may take to exit after it closed its end of the connection."""
SEND_BUFFER_BYTES = 4 * 2**20
"""An image should fit: it then takes half the time to send. The kernel may allow less (`net.core.wmem_max`)."""


class BackendProcess(InferenceBackend[InferenceRequest, Any]):
    """The backend of a worker type, in a child process that ends with this process. `start` creates it."""

    def __init__(self, spec_path: str, context: LoadContext) -> None:
        self._memory = memory_gauge(context.device, lambda: self._engine_bytes)
        self._engine_bytes = 0
        self._report: Callable[[LoadProgress], None] = context.report
        self._wait_for_gpu: Callable[[], None] = context.wait_for_gpu
        self._waiting: asyncio.Task[None] | None = None
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._streams: dict[int, asyncio.Queue[messages.Item | messages.Closed]] = {}
        self._stream_ids = itertools.count()
        self._stderr = StderrTail()
        self._lost: str | None = None
        self._ended = "its engine's process has ended"
        self._closing = False
        self._ending: asyncio.Task[None] | None = None
        self._connection: FramedConnection[FromBackend] = FramedConnection(
            FromBackend, self._on_message, self._on_close
        )
        self._socket, child_end = socket.socketpair()
        child_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        with child_end, tempfile.TemporaryFile() as file:
            file.truncate(messages.WATCHDOG_BYTES)
            context.watchdog.share(messages.watchdog_cells(file.fileno()))
            descriptors = (child_end.fileno(), file.fileno())
            arguments = (*descriptors, os.getpid())
            self._process = subprocess.Popen(  # noqa: S603  (no argument comes from a request)
                [sys.executable, "-m", "rbee_serve.replica.backend_server", spec_path, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stderr=self._stderr.descriptor,
                pass_fds=descriptors,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            self._stderr.start()

    @classmethod
    async def start(cls, spec_path: str, context: LoadContext) -> Self:
        """Start the process and load the model of the worker type `spec_path` in it.

        Raises the exception of the load, or that of `error_from_exit` if the process exits before the model is loaded.
        """
        backend = cls(spec_path, context)
        try:
            await asyncio.get_running_loop().create_connection(lambda: backend._connection, sock=backend._socket)
            backend._connection.send(messages.Load(messages.encode((context.worker, context.device))))
            await backend._loaded
        except BaseException:
            await asyncio.to_thread(backend.close)
            raise
        return backend

    async def execute(self, request: InferenceRequest) -> AsyncGenerator[Event[Any], None]:
        """The events and the exception of the backend in the process. Closing this cancels the request there."""
        stream_id = next(self._stream_ids)
        queue = self._streams[stream_id] = asyncio.Queue()
        try:
            self._send(messages.Execute(stream_id, messages.encode(request), correlation.current()))
            for count in itertools.count(1):
                message = await queue.get()
                if isinstance(message, messages.Closed):
                    if message.error is not None:
                        raise messages.decode(message.error)
                    return
                yield messages.decode(message.event)
                if count % (messages.WINDOW // 2) == 0:
                    self._send(messages.Grant(stream_id))
        finally:
            del self._streams[stream_id]
            with suppress(WorkerLost):
                self._send(messages.Cancel(stream_id))

    def is_healthy(self) -> bool:
        """Whether the process runs and is connected."""
        return self._lost is None and self._process.poll() is None

    def why_unhealthy(self) -> str:
        """That the process has ended, and how; what it has written is in the log only."""
        return self._ended

    def memory_bytes(self) -> int:
        """Bytes that this process and its children hold, on the device where there is a GPU."""
        return self._memory()

    def memory_source(self) -> MemorySource | None:
        """How they were counted."""
        return self._memory.source

    def close(self) -> None:
        """Have the process close its backend and exit. Blocks, at most `CLOSE_TIMEOUT_S` seconds; any thread may call
        it."""
        self._closing = True
        with suppress(OSError):  # the connection is closed already
            self._socket.shutdown(socket.SHUT_WR)  # the other direction closes when the process exits
        self._exit(CLOSE_TIMEOUT_S)

    def _send(self, message: ToBackend) -> None:
        if self._lost is not None:
            raise WorkerLost(self._lost)
        self._connection.send(message)

    def _on_message(self, message: FromBackend) -> None:
        match message:
            case messages.Item(stream_id) | messages.Closed(stream_id):
                if queue := self._streams.get(stream_id):
                    queue.put_nowait(message)
            case messages.Loading(progress):
                self._report(messages.decode(progress))
            case messages.Memory(held):
                self._engine_bytes = held
            case messages.WaitForGpu():
                self._waiting = asyncio.get_running_loop().create_task(self._hold_gpu())
            case messages.Loaded() if self._loaded.done():
                pass  # the load was cancelled
            case messages.Loaded(None):
                self._loaded.set_result(None)
            case messages.Loaded(bytes(error)):
                self._loaded.set_exception(messages.decode(error))

    async def _hold_gpu(self) -> None:
        try:
            await asyncio.to_thread(self._wait_for_gpu)
        except Exception as exc:
            if not self._loaded.done():
                self._loaded.set_exception(exc)
            return
        with suppress(WorkerLost):
            self._send(messages.GpuHeld())

    def _on_close(self) -> None:
        self._lost = "the engine's process has ended and is being replaced; try again"
        error = messages.encode(WorkerLost(self._lost))
        for stream_id, queue in self._streams.items():
            queue.put_nowait(messages.Closed(stream_id, error))
        self._ending = asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        status = await asyncio.to_thread(self._exit, EXIT_TIMEOUT_S)
        logger.log(logging.INFO if self._closing else logging.ERROR, "the engine's process has ended: %s", status)
        self._ended = f"its engine's process has ended: {status}"
        if self._process.returncode == messages.DEVICE_LOST_STATUS:
            self._ended = "its accelerator has failed, and its process could not use it any more"
        last_line = await asyncio.to_thread(self._stderr.last_line)
        if not self._loaded.done():
            self._loaded.set_exception(error_from_exit(status, last_line))

    def _exit(self, timeout_s: float) -> str:
        """Wait for the process to exit, kill it after `timeout_s` seconds, and return its exit status."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"
