"""How messages cross between two processes.

A frame is four bytes of length and a list of messages in MessagePack: whatever is to be said in one turn of the event
loop is one frame and one write.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import msgspec

_LENGTH_BYTES = 4
_LARGE_BYTES = 64 * 1024
"""What is larger is not copied to be sent in one go with its length."""

MessageT = TypeVar("MessageT")


class FramedConnection(asyncio.Protocol, Generic[MessageT]):
    """One end of a connection."""

    def __init__(
        self,
        heard: Any,
        receive: Callable[[MessageT], None],
        lost: Callable[[], None],
        *,
        longest: int | None = None,
    ) -> None:
        """`receive` is called for each message of the types in `heard`, `lost` when the connection is gone. A frame
        over `longest` bytes, or one that cannot be read, ends it."""
        self.longest = longest
        self._decoder: msgspec.msgpack.Decoder[list[MessageT]] = msgspec.msgpack.Decoder(list[heard])
        self._receive = receive
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._unsent: list[Any] = []
        self._flushing = False
        self._full = False

    def send(self, message: Any) -> None:
        """Say something; it leaves in this turn of the event loop, or when the other end has taken what was sent."""
        self._unsent.append(message)
        if not self._flushing and not self._full:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def close(self) -> None:
        """Hang up, after what has been said."""
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def _flush(self) -> None:
        self._flushing = False
        if self._unsent and self._transport is not None and not self._transport.is_closing():
            unsent, self._unsent = self._unsent, []  # what cannot be encoded is not tried for ever
            body = _encoder.encode(unsent)
            length = len(body).to_bytes(_LENGTH_BYTES)
            if len(body) < _LARGE_BYTES:
                self._transport.write(length + body)
            else:
                self._transport.write(length)
                self._transport.write(body)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        _notice_silence(transport.get_extra_info("socket"))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._unsent = []
        self._lost()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._full = True

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._full = False
        self._flush()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._received += data
        begin = 0
        while len(self._received) - begin >= _LENGTH_BYTES:
            size = int.from_bytes(self._received[begin : begin + _LENGTH_BYTES])
            end = begin + _LENGTH_BYTES + size
            if self.longest is not None and size > self.longest:
                self._abort()
                return
            if len(self._received) < end:
                break
            try:
                # In place: a copy of megabytes, in pages that the system has to find, costs more than all else.
                with memoryview(self._received) as received, received[begin + _LENGTH_BYTES : end] as body:
                    messages = self._decoder.decode(body)
            except msgspec.MsgspecError:
                self._abort()
                return
            begin = end
            for message in messages:
                self._receive(message)
        del self._received[:begin]

    def _abort(self) -> None:
        self._received.clear()
        if self._transport is not None:
            self._transport.abort()


def _notice_silence(connected: Any) -> None:
    """A machine that was switched off says nothing: have the kernel ask, and give the connection up after 25 s."""
    if connected.family == socket.AF_UNIX:
        return
    options = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 25_000}
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        if (option := getattr(socket, name, None)) is not None:  # macOS has only some of them
            connected.setsockopt(socket.IPPROTO_TCP, option, value)


_encoder = msgspec.msgpack.Encoder()
