"""The frames between an ingress and a replica."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rbee_serve.transport.framing import FramedConnection
from rbee_serve.transport.request_messages import (
    Chunk,
    FromIngress,
    FromReplica,
    RequestAck,
    StartRequest,
    WindowUpdate,
)


class Transport:
    """What was written, and whether the wire has been cut."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def get_extra_info(self, name: str) -> Any:
        return self

    def setsockopt(self, *option: int) -> None:
        pass


def end(heard: Any, *, longest: int | None = None) -> tuple[FramedConnection[Any], Transport, list[Any]]:
    """An end of a wire, its transport, and what it has heard so far."""
    received: list[Any] = []
    transport: Any = Transport()
    wire: FramedConnection[Any] = FramedConnection(heard, received.append, lambda: None, longest=longest)
    wire.connection_made(transport)
    return wire, transport, received


async def frames(*turns: list[Any]) -> bytes:
    """What is written for messages of several turns of the event loop."""
    wire, transport, _ = end(FromReplica)
    for messages in turns:
        for message in messages:
            wire.send(message)
        await asyncio.sleep(0)
    assert len(transport.written) == len(turns)
    return b"".join(transport.written)


@pytest.mark.parametrize("size", [1, 3, 7, 10_000])
async def test_messages_come_as_they_were_said_wherever_the_bytes_are_cut(size: int) -> None:
    said: list[Any] = [StartRequest(1, b"fields", "corr-1"), WindowUpdate(1, 2**40), StartRequest(2, b"", "")]
    data = await frames(said[:1], said[1:])
    wire, _, received = end(FromIngress)
    for begin in range(0, len(data), size):
        wire.data_received(data[begin : begin + size])
    assert received == said


async def test_a_message_of_megabytes_comes_whole_and_so_do_those_around_it() -> None:
    said: list[Any] = [Chunk(1, b"small", False), Chunk(2, bytes(range(256)) * 10_000, True), RequestAck(3)]
    wire, transport, _ = end(FromIngress)
    for message in said:
        wire.send(message)
        await asyncio.sleep(0)
    data = b"".join(transport.written)
    other, _, received = end(FromReplica)
    for begin in range(0, len(data), 100_000):
        other.data_received(data[begin : begin + 100_000])
    assert received == said


async def test_what_is_said_while_the_other_end_is_behind_leaves_in_one_frame_when_it_is_not() -> None:
    wire, transport, _ = end(FromIngress)
    wire.pause_writing()
    for number in range(100):
        wire.send(Chunk(number, b"x", False))
        await asyncio.sleep(0)
    assert transport.written == []
    wire.resume_writing()
    assert len(transport.written) == 1
    other, _, received = end(FromReplica)
    other.data_received(transport.written[0])
    assert [part.number for part in received] == list(range(100))


@pytest.mark.parametrize("frame", [b"\x00\x00\x00\x01\xc1", b"\x00\x00\x00\x02\x91\x05", b"\x00\x00\x00\x65"])
async def test_a_frame_that_cannot_be_read_or_is_too_long_cuts_the_wire(frame: bytes) -> None:
    wire, transport, received = end(FromIngress, longest=100)
    wire.data_received(frame)
    assert transport.aborted
    assert received == []


async def test_nothing_is_written_once_the_connection_is_gone() -> None:
    wire, transport, _ = end(FromIngress)
    wire.send(RequestAck(1))
    transport.abort()
    wire.connection_lost(None)
    wire.send(RequestAck(2))
    await asyncio.sleep(0)
    assert transport.written == []
