"""Messages from the processes of a vLLM engine to their replica: the progress of the load, and the exception that ends
the engine.

    engine's process                                    replica
    progress_loader ─→ send_progress ══╗
    failure_report  ─→ send_failure  ══╩═ datagrams ══→ EngineSocket ─→ LoadContext.report
                                                                     └→ failure
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from rbee_serve.state import LoadProgress

logger = logging.getLogger(__name__)

LISTENER = "RBEE_SERVE_LOAD_LISTENER"
"""Environment variable with the path of the replica's socket, for the engine's processes."""

FAILURE_TIMEOUT_S = 1.0
"""How long a process that fails waits for room in the socket; the kernel holds ten messages."""
_MAX_MESSAGE_BYTES = 16 * 1024


class _Message(msgspec.Struct, omit_defaults=True):
    progress: LoadProgress | None = None
    failure: str | None = None


_decoder = msgspec.json.Decoder(_Message)


def send_progress(progress: LoadProgress) -> None:
    """Send it from an engine's process to the replica, if that listens. Never waits and never fails."""
    _send(_Message(progress=progress), os.environ.get(LISTENER))


def send_failure(line: str) -> None:
    """Send the last words of an engine's process to the replica. Never fails, and waits at most `FAILURE_TIMEOUT_S`."""
    _send(_Message(failure=line), os.environ.get(LISTENER), FAILURE_TIMEOUT_S)


def _send(message: _Message, path: str | None, timeout_s: float = 0.0) -> None:
    if path is not None:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(timeout_s)
            sender.sendto(msgspec.json.encode(message), path)


class EngineSocket:
    """The replica's end, as long as the engine lives.

    During the load a thread reads it. Afterwards the kernel holds what comes, which is one message of each process that
    fails, until the reason for the engine's end is read.
    """

    def __init__(self, folder: Path) -> None:
        """Bind the socket in `folder`."""
        self._path = folder / f"rbee-{secrets.token_hex(4)}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))
        self._path.chmod(0o600)  # no other user can send
        self._report: Callable[[LoadProgress], None] | None = None
        self._failure: str | None = None
        self._loaded = threading.Event()

    @contextmanager
    def loading(self, report: Callable[[LoadProgress], None]) -> Iterator[None]:
        """While the block runs, processes that are started know the socket, and a thread calls `report` with what
        `send_progress` sends."""
        self._report = report
        os.environ[LISTENER] = str(self._path)
        thread = threading.Thread(target=self._read_until_loaded, name="load-listener", daemon=True)
        thread.start()
        try:
            yield
        finally:
            os.environ.pop(LISTENER, None)
            self._loaded.set()
            _send(_Message(), str(self._path))  # wakes the thread; where there is no room for it, the thread is awake
            thread.join()
            self._read_pending()
            self._report = None

    def failure(self) -> str | None:
        """The class and text of the exception that has ended the engine, the first one where several processes failed;
        None if none has reported one. It is also logged, once. Must not be shown to clients: it may quote a request."""
        self._read_pending()
        return self._failure

    def close(self) -> None:
        """Remove the socket."""
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _read_until_loaded(self) -> None:
        while not self._loaded.is_set():
            self._receive(self._socket.recv(_MAX_MESSAGE_BYTES))

    def _read_pending(self) -> None:
        with suppress(OSError):  # there are no more, or the socket is closed
            while True:
                self._receive(self._socket.recv(_MAX_MESSAGE_BYTES, socket.MSG_DONTWAIT))

    def _receive(self, data: bytes) -> None:
        with suppress(msgspec.DecodeError):
            message = _decoder.decode(data)
            if message.progress is not None and self._report is not None:
                self._report(message.progress)
            if message.failure is not None:
                logger.error("a process of vLLM's engine failed: %s", message.failure)
                self._failure = self._failure or message.failure
