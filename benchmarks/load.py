"""Load generators that cost less CPU than the servers.

`requests` runs wrk. `StreamReader` reads event streams from raw sockets in a process of its own: it
counts frames and records times, and parses no event.
"""

from __future__ import annotations

import multiprocessing
import re
import selectors
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import TypeVar

ItemT = TypeVar("ItemT")

FRAME = b"data: "
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_OK = b"HTTP/1.1 200"
_BUFFER = 256 * 1024


class LoadError(Exception):
    """A server responded incorrectly, or a load generator is missing."""


def batched(items: Sequence[ItemT], size: int) -> Iterator[Sequence[ItemT]]:
    """`items` in batches of `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))


def in_threads(work: Callable[[int], str | None], clients: int) -> None:
    """Call `work` with the number of each client, concurrently. Raises `LoadError` with the first failure that it
    returns."""
    with ThreadPoolExecutor(clients) as pool:
        if failures := [failure for failure in pool.map(work, range(clients)) if failure]:
            raise LoadError(failures[0])


@dataclass(frozen=True, slots=True)
class Target:
    """The address of requests."""

    port: int
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def request(self, body: bytes) -> bytes:
        """The bytes of a POST of `body`."""
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass(frozen=True, slots=True)
class Requests:
    """The result of `requests`: responses of status 2xx, the rate, and the median and 99th percentile of the time in
    milliseconds."""

    count: int
    per_s: float
    median_ms: float
    p99_ms: float


def requests(target: Target, body: bytes, clients: int, seconds: float) -> Requests:
    """The same request from `clients` connections, each sending the next one after a response."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise LoadError("wrk, the load generator, is not on PATH; install it (Debian and Ubuntu: apt install wrk)")
    headers = {"Content-Type": "application/json", **target.headers}
    script = [
        'wrk.method = "POST"',
        f"wrk.body = [==[{body.decode()}]==]",
        *(f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "request.lua")
        path.write_text("\n".join(script))
        url = f"http://127.0.0.1:{target.port}{target.path}"
        command = [
            wrk,
            "-t1",
            f"-c{clients}",
            f"-d{seconds:.0f}s",
            "--latency",
            "--timeout",
            "30s",
            "-s",
            str(path),
            url,
        ]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return parse_wrk(output)


def parse_wrk(output: str) -> Requests:
    """Parse the output of wrk. Raises `LoadError` if any answer was not 2xx or a socket failed."""
    if "Non-2xx" in output or "Socket errors" in output:
        raise LoadError(f"not every request succeeded:\n{output}")
    count = re.search(r"(\d+) requests in", output)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    median, p99 = (re.search(rf"\b{percent}%\s+([\d.]+)(us|ms|s)\b", output) for percent in (50, 99))
    if not (count and rate and median and p99):
        raise LoadError(f"the output of wrk is unexpected:\n{output}")
    return Requests(int(count[1]), float(rate[1]), _ms(median), _ms(p99))


def _ms(found: re.Match[str]) -> float:
    return float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found[2]]


@dataclass(frozen=True, slots=True)
class StreamLoad:
    """Streams to open. Each of `clients` connections takes the next of `bodies` as soon as its stream has ended, for
    `seconds`, cyclically; or, if `seconds` is None, until each body was sent once.

    `first` are bytes that identify the first frame of the response proper; the time until then is recorded."""

    target: Target
    bodies: Sequence[bytes]
    clients: int
    seconds: float | None = None
    ramp_s: float = 0.0
    first: bytes = FRAME
    keep: bool = False


@dataclass(slots=True)
class Streams:
    """What was received. `seconds` runs from the end of the ramp, or from the first request if all were read to their
    end; `frames` arrived within it, `all_frames` including the ramp."""

    seconds: float = 0.0
    frames: int = 0
    all_frames: int = 0
    ended: int = 0
    first_s: list[float] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)
    """Whole responses, if `keep` is set."""

    @property
    def frames_per_s(self) -> float:
        """The rate."""
        return self.frames / self.seconds


class StreamReader:
    """A process that reads streams."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def read(self, load: StreamLoad) -> Streams:
        """Open the streams and read them. Raises `LoadError` if one is refused or ends early."""
        return self._pool.submit(read_streams, load).result()

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


class FrameCounter:
    """Counts frames, however the reads split them."""

    def __init__(self) -> None:
        self._tail = b""
        self.complete = False

    def feed(self, data: bytes) -> int:
        """The frames that begin in `data`, or whose beginning `data` completes."""
        joined = self._tail + data
        known = self._tail.count(FRAME)
        self.complete = joined.endswith(_LAST_CHUNK)
        self._tail = joined[-len(_LAST_CHUNK) :]
        return joined.count(FRAME) - known


class _ClientConnection:
    def __init__(self, load: StreamLoad) -> None:
        self._load = load
        self.socket = socket.create_connection(("127.0.0.1", load.target.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)

    def send(self, body: bytes) -> None:
        self._counter = FrameCounter()
        self._parts: list[bytes] = []
        self._sent_at: float | None = time.perf_counter()
        self.socket.send(self._load.target.request(body))

    def read(self, seen: Streams) -> bool:
        """Read available data; returns whether the stream is complete."""
        data = self.socket.recv(_BUFFER)
        if not data:
            raise LoadError("a stream ended early")
        if not self._parts and not _OK.startswith(data[: len(_OK)]):
            raise LoadError(f"a stream was refused: {self._whole(data)!r}")
        if self._load.keep or not self._parts:
            self._parts.append(data)
        if self._sent_at is not None and self._load.first in data:
            seen.first_s.append(time.perf_counter() - self._sent_at)
            self._sent_at = None
        seen.all_frames += self._counter.feed(data)
        if self._counter.complete:
            seen.ended += 1
            if self._load.keep:
                seen.answers.append(b"".join(self._parts))
        return self._counter.complete

    def _whole(self, data: bytes) -> bytes:
        """A refusal, as far as it arrives within a second."""
        self.socket.settimeout(1)
        with suppress(OSError):
            while len(data) < 500 and (more := self.socket.recv(_BUFFER)):
                data += more
        return data[:500]


def read_streams(load: StreamLoad) -> Streams:
    """The work of a `StreamReader` in its process."""
    with ExitStack() as stack:
        connections = [_ClientConnection(load) for _ in range(load.clients)]
        for connection in connections:
            stack.callback(connection.socket.close)
        return _read(load, connections, stack.enter_context(selectors.DefaultSelector()))


def _read(load: StreamLoad, connections: Sequence[_ClientConnection], selector: selectors.BaseSelector) -> Streams:
    seen = Streams()
    bodies: Iterator[bytes] = iter(load.bodies) if load.seconds is None else cycle(load.bodies)
    counted_from = time.perf_counter() + load.ramp_s
    end = counted_from + (load.seconds if load.seconds is not None else float("inf"))
    before = None if load.ramp_s else 0
    for connection, body in zip(connections, islice(bodies, load.clients), strict=False):
        connection.send(body)
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    while selector.get_map() and (now := time.perf_counter()) < end:
        if before is None and now >= counted_from:
            before, counted_from = seen.all_frames, now
        for key, _ in selector.select(0.05):
            connection = key.data
            if not connection.read(seen):
                continue
            next_body = next(bodies, None)
            if next_body is None:
                selector.unregister(connection.socket)
            else:
                connection.send(next_body)
    seen.seconds = time.perf_counter() - counted_from
    seen.frames = seen.all_frames - (before or 0)
    return seen
