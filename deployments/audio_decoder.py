"""A process that decodes audio files: one that crashes a decoder, or keeps it busy for ever, costs that process only.

It is asked on its standard input, answers on its standard output, and ends when nobody can ask any more.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from typing import IO, TYPE_CHECKING, Any

from deployments.audio_files import FULL, decode, kind_of, refused
from rbee_serve.errors import InvalidRequest

if TYPE_CHECKING:
    import numpy as np

    Samples = np.ndarray[tuple[int], np.dtype[np.float32]]

logger = logging.getLogger(__name__)

LIMIT_S = 60
"""Seconds that one file may keep the decoder busy: half an hour of Opus takes 8 on a slow core."""

MEMORY_BYTES = 4 * 2**30
"""The address space of the decoder's process."""

PIPE_BYTES = 2**20
"""What one process hands to the other at once: with less they would wake each other hundreds of times for a file."""

_REQUEST = struct.Struct("<dQ")
"""Most seconds, and bytes that follow."""
_ANSWER = struct.Struct("<cQ")
"""What comes, and bytes that follow: samples, or the JSON of what is wrong."""
_SAMPLES, _REFUSAL = b"S", b"R"


class AudioDecoder:
    """`audio_files.decode` in a process of its own, which is started when it is first needed and ends with this one.
    May be used from any thread; one file is decoded at a time."""

    def __init__(self, max_s: float) -> None:
        self._max_s = max_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def decode(self, data: bytes) -> Samples:
        """The file's sound: float32 in [-1, 1], mono, 16,000 samples per second. Raises `InvalidRequest`; also on a
        file that ends the process."""
        kind_of(data)
        with self._lock:
            process = self._running()
            try:
                kind, answer = self._exchange(process, data)
            except (OSError, EOFError) as exc:
                self._end()
                logger.error("the audio decoder ended with %s on a file of %d bytes", process.returncode, len(data))
                raise refused("readable", "makes the decoder fail; encode it anew") from exc
        if kind == _REFUSAL:
            raise refused(*json.loads(answer))
        numpy: Any = importlib.import_module("numpy")
        return numpy.frombuffer(answer, dtype=numpy.int16).astype(numpy.float32) / FULL  # type: ignore[no-any-return]

    @property
    def pid(self) -> int | None:
        """The process that decodes, where there is one."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "deployments.audio_decoder"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pipesize=PIPE_BYTES,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        return self._process

    def _exchange(self, process: subprocess.Popen[bytes], data: bytes) -> tuple[bytes, bytes]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(_REQUEST.pack(self._max_s, len(data)) + data)
        process.stdin.flush()
        kind, size = _ANSWER.unpack(_exactly(process.stdout, _ANSWER.size))
        return kind, _exactly(process.stdout, size)

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """What the decoder's process does: answer files with samples, until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the server, whose end is ours
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while head := requests.read(_REQUEST.size):
        max_s, size = _REQUEST.unpack(head)
        data = _exactly(requests, size)
        signal.alarm(LIMIT_S)  # not caught, so it ends a decoder that never comes back
        try:
            kind, answer = _SAMPLES, decode(data, max_s).tobytes()
        except InvalidRequest as exc:
            violation = exc.violations[0]
            kind, answer = _REFUSAL, json.dumps([violation.constraint, violation.message]).encode()
        signal.alarm(0)
        answers.write(_ANSWER.pack(kind, len(answer)) + answer)
        answers.flush()


if __name__ == "__main__":
    own = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get among the answers
    serve(sys.stdin.buffer, own)
