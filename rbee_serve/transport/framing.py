"""Frames of messages over TCP.

A frame is four bytes of length and a list of messages in MessagePack. All messages that are sent in one iteration of
the event loop, or while the peer is not reading, go out as one frame in one write.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import msgspec

logger = logging.getLogger(__name__)

_LENGTH_BYTES = 4
_MAX_COPIED_BYTES = 64 * 1024
"""A larger body is written after its length instead of being copied behind it."""
_LIST_OF_ONE = b"\x91"
_MAX_REASON_CHARACTERS = 300

MessageT = TypeVar("MessageT")


class FramedConnection(asyncio.Protocol, Generic[MessageT]):
    """One end of a connection."""

    def __init__(
        self,
        message_types: Any,
        on_message: Callable[[MessageT], None],
        on_close: Callable[[], None],
        *,
        max_frame_bytes: int | None = None,
    ) -> None:
        """`on_message` is called for each message of `message_types`, `on_close` once when the connection is gone. A
        frame that is longer than `max_frame_bytes` or cannot be decoded closes the connection."""
        self.peer = "a peer that has not connected"
        """Address of the other end, for the log."""
        self.closed = False
        self.aborted = False
        self._decoder: msgspec.msgpack.Decoder[list[MessageT]] = msgspec.msgpack.Decoder(list[message_types])
        self._on_message = on_message
        self._on_close = on_close
        self._max_frame_bytes = max_frame_bytes
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._unsent: list[Any] = []
        self._flush_scheduled = False
        self._paused = False

    def expect(self, message_types: Any, on_message: Callable[[Any], None], on_close: Callable[[], None]) -> None:
        """From the next frame on, receive `message_types` without a limit of size."""
        self._decoder = msgspec.msgpack.Decoder(list[message_types])
        self._on_message = on_message
        self._on_close = on_close
        self._max_frame_bytes = None

    def send(self, message: Any) -> None:
        """Send a message, in this iteration of the event loop or when the peer reads again. One that cannot be encoded
        closes the connection; use `encoded` and `send_encoded` where that is possible."""
        self._unsent.append(message)
        if not self._flush_scheduled and not self._paused:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)

    def send_encoded(self, message: bytes) -> None:
        """Send the result of `encoded`. A large one is a frame of its own and is not copied."""
        if len(message) < _MAX_COPIED_BYTES:
            self.send(msgspec.Raw(message))
            return
        self.flush()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write((len(_LIST_OF_ONE) + len(message)).to_bytes(_LENGTH_BYTES) + _LIST_OF_ONE)
            self._transport.write(message)

    def close(self) -> None:
        """Send what is unsent, then close."""
        if self._transport is not None:
            self.flush()
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Close at once, with `reason` in the log."""
        self.aborted = True
        logger.warning("closed the connection with %s: %s", self.peer, reason[:_MAX_REASON_CHARACTERS])
        self._received.clear()
        if self._transport is not None:
            self._transport.abort()

    def flush(self) -> None:
        """Write what is unsent as one frame now."""
        self._flush_scheduled = False
        if self._unsent and self._transport is not None and not self._transport.is_closing():
            unsent, self._unsent = self._unsent, []
            try:
                body = _encoder.encode(unsent)
            except Exception as exc:
                self.abort(f"a message cannot be encoded: {exc}")
                return
            length = len(body).to_bytes(_LENGTH_BYTES)
            if len(body) < _MAX_COPIED_BYTES:
                self._transport.write(length + body)
            else:
                self._transport.write(length)
                self._transport.write(body)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        self.peer = _address(transport.get_extra_info("peername"))
        _enable_keep_alive(transport.get_extra_info("socket"))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.closed = True
        self._unsent = []
        self._on_close()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._paused = True

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._paused = False
        self.flush()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._received += data
        begin = 0
        while len(self._received) - begin >= _LENGTH_BYTES:
            size = int.from_bytes(self._received[begin : begin + _LENGTH_BYTES])
            end = begin + _LENGTH_BYTES + size
            if self._max_frame_bytes is not None and size > self._max_frame_bytes:
                self.abort(f"a frame of {size} bytes where at most {self._max_frame_bytes} are allowed")
                return
            if len(self._received) < end:
                break
            try:
                # In place: copying megabytes into fresh pages costs more than decoding them.
                with memoryview(self._received) as received, received[begin + _LENGTH_BYTES : end] as body:
                    messages = self._decoder.decode(body)
            except (msgspec.MsgspecError, ValueError, RecursionError, MemoryError) as exc:
                self.abort(f"a frame cannot be decoded: {exc}")
                return
            begin = end
            for message in messages:
                self._on_message(message)
        del self._received[:begin]


def encoded(message: Any) -> bytes:
    """A message for `FramedConnection.send_encoded`. Raises `OverflowError` for an integer beyond 64 bits,
    `TypeError` for a type that MessagePack does not have, `UnicodeEncodeError` for a lone surrogate in a text."""
    return _encoder.encode(message)


def _address(name: Any) -> str:
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "an unknown address"


def _enable_keep_alive(connected: Any) -> None:
    """A machine that was switched off closes nothing: the kernel probes it, and gives the connection up after 25 s."""
    if connected.family == socket.AF_UNIX:
        return
    options = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 25_000}
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        if (option := getattr(socket, name, None)) is not None:  # macOS has only some of them
            connected.setsockopt(socket.IPPROTO_TCP, option, value)


_encoder = msgspec.msgpack.Encoder()
