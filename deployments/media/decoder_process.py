"""A process that decodes untrusted files: a file that crashes or blocks a decoder affects that process only.

Files are sent to its standard input, arrays come back on its standard output, and it ends when its input is closed. The
decoder is a function of a file and a limit that returns an array, or an array and notes, or raises `InvalidRequest`.
"""

from __future__ import annotations

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

MAX_MEMORY_BYTES = 4 * 2**30
"""Address space of the process."""

PIPE_BYTES = 2**20
"""Buffer size of the pipes. Smaller buffers wake both processes hundreds of times per file."""

_REQUEST = struct.Struct("<Q")
"""The size of the file that follows."""
_RESPONSE = struct.Struct("<QQ")
"""The sizes of the JSON header and the array that follow. The header has the array's type, its shape and the notes, or
the fault of the file."""


class DecoderProcess:
    """`function(data, limit)` in a separate process. It starts on first use and ends with this one. Thread-safe; one
    file is decoded at a time.

    `function` is `package.module:name`; `limit` bounds the decoded size. A file that takes longer than `timeout_s`
    seconds ends the process.
    """

    def __init__(self, function: str, limit: float, timeout_s: int) -> None:
        self._arguments = [function, json.dumps(limit), str(timeout_s)]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def decode(self, data: bytes, field: str) -> Any:
        """The read-only array. Raises `InvalidRequest` about `field`, also for a file that ends the process."""
        return self.read(data, field)[0]

    def read(self, data: bytes, field: str) -> tuple[Any, list[str]]:
        """As `decode`, with the decoder's notes: sentences about what was changed or left out."""
        import numpy

        with self._lock:
            process = self._running()
            try:
                header, array = self._exchange(process, data)
            except (OSError, EOFError) as exc:
                self._end()
                logger.error("a decoder ended with %s on %s of %d bytes", process.returncode, field, len(data))
                raise InvalidRequest.of_field(field, "readable", "makes the decoder fail; encode it again") from exc
        if "constraint" in header:
            raise InvalidRequest.of_field(field, header["constraint"], header["message"])
        return numpy.frombuffer(array, header["dtype"]).reshape(header["shape"]), header["notes"]

    @property
    def pid(self) -> int | None:
        """The id of the process, if it runs."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            self._process = subprocess.Popen(  # noqa: S603  (no argument comes from a request)
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
        header_size, array_size = _RESPONSE.unpack(_read_exactly(process.stdout, _RESPONSE.size))
        return json.loads(_read_exactly(process.stdout, header_size)), _read_exactly(process.stdout, array_size)

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _read_exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


def serve(decode: Callable[[bytes], Any], timeout_s: int, requests: IO[bytes], responses: IO[bytes]) -> None:
    """The loop of the process: decode files until `requests` is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C ends the server, which ends this process
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while size := requests.read(_REQUEST.size):
        data = _read_exactly(requests, *_REQUEST.unpack(size))
        signal.alarm(timeout_s)  # without a handler, so it ends a decoder that does not return
        try:
            decoded = decode(data)
            array, notes = decoded if isinstance(decoded, tuple) else (decoded, [])
            header, body = {"dtype": array.dtype.str, "shape": array.shape, "notes": notes}, memoryview(array).cast("B")
        except InvalidRequest as exc:
            violation = exc.violations[0]
            header, body = {"constraint": violation.constraint, "message": violation.message}, memoryview(b"")
        signal.alarm(0)
        encoded = json.dumps(header).encode()
        responses.write(_RESPONSE.pack(len(encoded), len(body)) + encoded)
        responses.write(body)
        responses.flush()


def _main(function: str, limit: str, timeout_s: str) -> None:
    decode, parsed_limit = pkgutil.resolve_name(function), json.loads(limit)
    responses = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library's prints must not mix with the responses
    serve(lambda data: decode(data, parsed_limit), int(timeout_s), sys.stdin.buffer, responses)


if __name__ == "__main__":
    _main(*sys.argv[1:])
