"""A process that decodes files of strangers: one that crashes a decoder, or keeps it busy for ever, costs that process
only.

It is asked on its standard input, answers on its standard output, and ends when nobody can ask any more. What decodes
is a function of a file and a bound that returns an array, or raises `InvalidRequest`.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import pkgutil
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

from rbee_serve.errors import InvalidRequest

logger = logging.getLogger(__name__)

MEMORY_BYTES = 4 * 2**30
"""The address space of the process."""

PIPE_BYTES = 2**20
"""What one process hands to the other at once: with less they would wake each other hundreds of times for a file."""

_REQUEST = struct.Struct("<Q")
"""Bytes of the file that follows."""
_ANSWER = struct.Struct("<QQ")
"""Bytes of JSON that follow, and of an array: its form, or what is wrong with the file."""


class DecoderProcess:
    """`function(data, bound)` in a process of its own, which is started when it is first needed and ends with this one.
    May be used from any thread; one file is decoded at a time.

    `function` is written `package.module:name`, and `bound` is the most that it may decode. A file that keeps it busy
    for more than `limit_s` seconds ends it.
    """

    def __init__(self, function: str, bound: float, limit_s: int) -> None:
        self._arguments = [function, json.dumps(bound), str(limit_s)]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def decode(self, data: bytes, field: str) -> Any:
        """The array, which is not to be written to. Raises `InvalidRequest` about `field`; also on a file that ends the
        process."""
        with self._lock:
            process = self._running()
            try:
                head, array = self._exchange(process, data)
            except (OSError, EOFError) as exc:
                self._end()
                logger.error("a decoder ended with %s on %s of %d bytes", process.returncode, field, len(data))
                raise InvalidRequest.of_field(field, "readable", "makes the decoder fail; encode it anew") from exc
        if "constraint" in head:
            raise InvalidRequest.of_field(field, head["constraint"], head["message"])
        return importlib.import_module("numpy").frombuffer(array, head["dtype"]).reshape(head["shape"])

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
            self._process = subprocess.Popen(  # noqa: S603  (nothing of a request is among the arguments)
                [sys.executable, "-m", "deployments.media.decoder_process", *self._arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pipesize=PIPE_BYTES,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        return self._process

    def _exchange(self, process: subprocess.Popen[bytes], data: bytes) -> tuple[dict[str, Any], bytes]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(_REQUEST.pack(len(data)) + data)
        process.stdin.flush()
        head_size, array_size = _ANSWER.unpack(_exactly(process.stdout, _ANSWER.size))
        return json.loads(_exactly(process.stdout, head_size)), _exactly(process.stdout, array_size)

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


def serve(decode: Callable[[bytes], Any], limit_s: int, requests: IO[bytes], answers: IO[bytes]) -> None:
    """What the process does: answer files with arrays, until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the server, whose end is ours
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while size := requests.read(_REQUEST.size):
        data = _exactly(requests, *_REQUEST.unpack(size))
        signal.alarm(limit_s)  # not caught, so it ends a decoder that never comes back
        try:
            array = decode(data)
            head, body = {"dtype": array.dtype.str, "shape": array.shape}, memoryview(array).cast("B")
        except InvalidRequest as exc:
            violation = exc.violations[0]
            head, body = {"constraint": violation.constraint, "message": violation.message}, memoryview(b"")
        signal.alarm(0)
        told = json.dumps(head).encode()
        answers.write(_ANSWER.pack(len(told), len(body)) + told)
        answers.write(body)
        answers.flush()


def _main(function: str, bound: str, limit_s: str) -> None:
    decode, most = pkgutil.resolve_name(function), json.loads(bound)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get among the answers
    serve(lambda data: decode(data, most), int(limit_s), sys.stdin.buffer, answers)


if __name__ == "__main__":
    _main(*sys.argv[1:])
