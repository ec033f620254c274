"""A backend in a process of its own, for engines of many short operations.

Such an engine gives the interpreter back at each operation and then waits for whoever has taken it: in the replica's
process the event loop, and Ray's threads a hundred times a second. Alone in a process it waits for nobody.

    replica                                    engine process
    BackendProcess.execute    -- request -->   the worker type's own backend
                              <-- events --
    LoadContext.report        <-- progress --  its load
    LoadContext.watchdog         == shared memory ==

What is sent is pickled, between two processes that trust each other.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from rbee_serve import correlation
from rbee_serve.errors import ConfigurationError, WorkerError, WorkerLost
from rbee_serve.events import Event
from rbee_serve.replica.foreign_errors import error_from_backend
from rbee_serve.request import InferenceRequest
from rbee_serve.state import LoadProgress
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.device import set_threads
from rbee_serve.worker.memory import memory_gauge
from rbee_serve.worker.registry import load_spec
from rbee_serve.worker.spec import LoadContext
from rbee_serve.worker.watchdog import CELLS, Watchdog

logger = logging.getLogger(__name__)

WINDOW = 32
"""Events of a request that the engine's process may be ahead of their reader; it is told at every half of them."""

HEALTH_PERIOD_S = 1.0
"""How often the process asks its backend whether only a new one can help."""

END_S = 5.0
"""How long the process may take to end in peace."""
DEAD_S = 0.5
"""The same, where it does not answer any more."""


class BackendProcess(InferenceBackend[InferenceRequest, Any]):
    """The backend that the worker type `spec_path` loads, in a process that ends with this one.

    Returns when the model is loaded. Raises what the load raises, and `RuntimeError` if the process ends meanwhile.
    """

    def __init__(self, spec_path: str, context: LoadContext) -> None:
        self._memory = memory_gauge(context.device)
        self._connection, theirs = Pipe()
        with tempfile.TemporaryFile() as file:
            file.truncate(8 * CELLS)
            context.watchdog.share(_cells(file.fileno()))
            descriptors = (theirs.fileno(), file.fileno())
            self._process = subprocess.Popen(  # noqa: S603  (nothing of a request is among the arguments)
                [sys.executable, "-m", __name__, spec_path, *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                pass_fds=descriptors,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        theirs.close()
        self._running: dict[int, Callable[[str, Any], None]] = {}
        self._numbers = itertools.count()
        try:
            self._connection.send((context.worker, context.device))
            self._wait_for_load(context.report)
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._read, name="engine-process-reader", daemon=True).start()

    def _wait_for_load(self, report: Callable[[LoadProgress], None]) -> None:
        while True:
            try:
                kind, value = self._connection.recv()
            except EOFError:
                raise RuntimeError(
                    f"the engine's process ended while it loaded the model: {self._end(DEAD_S)}"
                ) from None
            if kind == "failed":
                raise value
            if kind == "loaded":
                return
            report(value)

    async def execute(self, request: InferenceRequest) -> AsyncGenerator[Event[Any], None]:
        """What the backend in the process yields and raises. Closing this closes it there."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[str, Any]]()
        number = next(self._numbers)
        self._running[number] = partial(_put, loop, queue)
        try:
            self._send("execute", number, (request, correlation.current()))
            for count in itertools.count(1):
                kind, value = await queue.get()
                if kind == "failed":
                    raise value
                if kind == "end":
                    return
                yield value
                if count % (WINDOW // 2) == 0:
                    self._send("more", number)
        finally:
            del self._running[number]
            with suppress(WorkerLost):
                self._send("leave", number)

    def is_healthy(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def memory_bytes(self) -> int:
        """Bytes that the processes hold, on the device where there is one."""
        return self._memory()

    def close(self) -> None:
        """End the process, after the step that its engine is at."""
        with suppress(OSError):
            self._connection.send(("close", 0, None))
        self._end(END_S)

    def _send(self, kind: str, number: int, value: Any = None) -> None:
        try:
            self._connection.send((kind, number, value))
        except OSError:
            raise self._lost() from None

    def _read(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                number, kind, value = self._connection.recv()
                self._deliver(number, kind, value)
        for number in list(self._running):
            self._deliver(number, "failed", self._lost())

    def _deliver(self, number: int, kind: str, value: Any) -> None:
        if deliver := self._running.get(number):
            with suppress(RuntimeError):  # the loop has been closed
                deliver(kind, value)

    def _lost(self) -> WorkerLost:
        return WorkerLost(f"the engine's process has ended ({self._end(DEAD_S)}) and is being replaced; try again")

    def _end(self, within_s: float) -> str:
        """Kill the process if it is still there after that time, and tell how it ended."""
        try:
            code = self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _put(loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[tuple[str, Any]], kind: str, value: Any) -> None:
    loop.call_soon_threadsafe(queue.put_nowait, (kind, value))


def _cells(descriptor: int) -> memoryview[float]:
    return memoryview(mmap.mmap(descriptor, 8 * CELLS)).cast("d")


class _Serving:
    """What the engine's process does. Every message of the other side begins with what is to be done."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._credits: dict[int, asyncio.Semaphore] = {}
        self._backend: InferenceBackend[Any, Any] | None = None

    async def run(self, spec_path: str, steps: Watchdog) -> None:
        """Load, then serve, until the other side is gone."""
        worker, device = self._connection.recv()
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, args=(loop,), name="requests", daemon=True).start()
        context = LoadContext(worker, device, lambda progress: self._tell("progress", progress), steps)
        try:
            self._backend = await asyncio.to_thread(load_spec(spec_path).load, context)
            set_threads(worker)
        except Exception as exc:
            if not isinstance(exc, ConfigurationError | WorkerError):
                logger.error("the model could not be loaded", exc_info=exc)  # what is sent leaves this behind
            self._tell("failed", _sendable(exc))
            return
        self._tell("loaded", None)
        while self._backend.is_healthy():  # noqa: ASYNC110  (it is asked, and tells nobody)
            await asyncio.sleep(HEALTH_PERIOD_S)
        logger.error("the engine is dead; its process ends, and the worker is replaced")
        os._exit(1)

    def _tell(self, *message: Any) -> None:
        with self._lock:
            self._connection.send(message)

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(EOFError, OSError):
            while (message := self._connection.recv())[0] != "close":
                loop.call_soon_threadsafe(self._handle, *message)
            if self._backend is not None:
                self._backend.close()
        os._exit(0)  # whatever the engine is doing, when nobody is there any more

    def _handle(self, kind: str, number: int, value: Any) -> None:
        if kind == "execute":
            self._credits[number] = asyncio.Semaphore(WINDOW)
            self._tasks[number] = task = asyncio.create_task(self._execute(number, *value))
            task.add_done_callback(lambda _: self._forget(number))  # also of one that is cancelled before it begins
        elif number in self._tasks and kind == "leave":
            self._tasks[number].cancel()
        elif number in self._tasks:
            for _ in range(WINDOW // 2):
                self._credits[number].release()

    async def _execute(self, number: int, request: InferenceRequest, correlation_id: str | None) -> None:
        correlation.enter(correlation.accept(correlation_id))
        assert self._backend is not None
        try:
            work: Any = self._backend.execute(request)  # a generator, as that of every backend is
            async with aclosing(work) as events:
                async for event in events:
                    await self._credits[number].acquire()
                    self._tell(number, "event", event)
            self._tell(number, "end", None)
        except Exception as exc:
            self._tell(number, "failed", error_from_backend(exc))

    def _forget(self, number: int) -> None:
        del self._tasks[number], self._credits[number]


def _sendable(error: Exception) -> Exception:
    """The error, or one that names it where a library's own cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  (what was written here)
    except Exception:  # whatever their constructors raise
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _main(spec_path: str, connection: str, cells: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the server, whose end is ours
    correlation.configure_logging(logging.WARNING)
    steps = Watchdog(0.0)
    steps.share(_cells(int(cells)))
    asyncio.run(_Serving(Connection(int(connection))).run(spec_path, steps))


if __name__ == "__main__":
    _main(*sys.argv[1:])
