"""HTTP by hand: requests that an HTTP client would not send, responses to the byte, and connections that are cut at a
chosen moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

READ_BYTES = 64 * 1024
SLOW_READ_BYTES_PER_S = 40_000


@dataclass(frozen=True, slots=True)
class Conduct:
    """How a client behaves. It closes the connection after `leave_after_bytes` of the response (0: as soon as the
    request is sent; None: never), or after `send_bytes` of the request."""

    name: str = "reads all"
    send_bytes: int | None = None
    leave_after_bytes: int | None = None
    slow_reader: bool = False
    pieces: int = 1
    """Parts in which the request is sent, with pauses."""

    @property
    def leaves(self) -> bool:
        """Whether it may leave before the end of the response."""
        return self.send_bytes is not None or self.leave_after_bytes is not None


@dataclass(slots=True)
class Response:
    """What arrived. `status` 0: nothing, or no HTTP. `complete`: with the end that HTTP defines."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    complete: bool = False
    timed_out: bool = False
    seconds: float = 0.0
    error: str = ""

    @property
    def is_stream(self) -> bool:
        """Whether it is a stream of events."""
        return self.headers.get("content-type", "").startswith("text/event-stream")


def post(port: int, path: str, body: bytes, headers: Sequence[str] = (), method: str = "POST") -> bytes:
    """The bytes of a request."""
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def exchange(port: int, request: bytes, timeout_s: float, conduct: Conduct = Conduct()) -> Response:
    """Send the request over a connection of its own and read the response, as `conduct` says. Never raises on what the
    server does."""
    response = Response()
    began = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            await _exchange(port, request, response, conduct)
    except TimeoutError:
        response.timed_out = True
    except (OSError, EOFError, ValueError, LookupError, asyncio.LimitOverrunError) as exc:
        response.error = type(exc).__name__
    response.seconds = time.monotonic() - began
    return response


async def _exchange(port: int, request: bytes, response: Response, conduct: Conduct) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    sending = asyncio.create_task(_send(writer, request, conduct))
    try:
        if conduct.send_bytes is not None or conduct.leave_after_bytes == 0:
            await sending
        else:  # a refusal may come before all is sent
            await _receive(reader, response, conduct)
    finally:
        sending.cancel()
        writer.transport.abort()


async def _send(writer: asyncio.StreamWriter, request: bytes, conduct: Conduct) -> None:
    data = request[: conduct.send_bytes]
    step = max(1, -(-len(data) // conduct.pieces))
    for start in range(0, len(data), step):
        writer.write(data[start : start + step])
        if start + step < len(data):
            await asyncio.sleep(0.1)
    try:
        await writer.drain()
    except ConnectionError:  # a server may respond and close before it has read all
        return


async def _receive(reader: asyncio.StreamReader, response: Response, conduct: Conduct) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status, *lines = head.split("\r\n")
    response.status = int(status.split(" ")[1])
    pairs = (line.partition(":") for line in lines if line)
    response.headers = {name.lower(): value.strip() for name, _, value in pairs}
    if response.headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            if await _read(reader, size, response, conduct):
                return
            await reader.readexactly(2)
        await reader.readexactly(2)
    elif "content-length" in response.headers:
        if await _read(reader, int(response.headers["content-length"]), response, conduct):
            return
    else:
        while data := await reader.read(READ_BYTES):
            response.body += data
    response.complete = True


async def _read(reader: asyncio.StreamReader, size: int, response: Response, conduct: Conduct) -> bool:
    """Read `size` bytes of the body; whether the client left meanwhile."""
    while size:
        data = await reader.read(min(size, SLOW_READ_BYTES_PER_S // 20 if conduct.slow_reader else READ_BYTES))
        if not data:
            raise EOFError
        response.body += data
        size -= len(data)
        if conduct.leave_after_bytes is not None and len(response.body) >= conduct.leave_after_bytes:
            return True
        if conduct.slow_reader:
            await asyncio.sleep(len(data) / SLOW_READ_BYTES_PER_S)
    return False
