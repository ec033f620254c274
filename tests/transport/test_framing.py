"""Frames: how messages are grouped, split and refused."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import msgspec
import pytest

from rbee_serve.state import LoadProgress, ReplicaState
from rbee_serve.transport.framing import FramedConnection, encoded
from rbee_serve.transport.request_messages import (
    Chunk,
    FromIngress,
    FromReplica,
    RequestAck,
    StartRequest,
    WindowUpdate,
)
from rbee_serve.transport.state_messages import StateUpdate, ToHub


class Transport:
    """Records what is written, and whether it is aborted."""

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
        return ("192.0.2.1", 1234) if name == "peername" else self

    family = socket.AF_INET

    def setsockopt(self, *option: int) -> None:
        pass


def end(
    message_types: Any, *, max_frame_bytes: int | None = None
) -> tuple[FramedConnection[Any], Transport, list[Any]]:
    """An end of a connection, its transport, and the messages that it has received."""
    received: list[Any] = []
    transport: Any = Transport()
    connection: FramedConnection[Any] = FramedConnection(
        message_types, received.append, lambda: None, max_frame_bytes=max_frame_bytes
    )
    connection.connection_made(transport)
    return connection, transport, received


async def frames(*turns: list[Any]) -> bytes:
    """The bytes written for messages of several iterations of the event loop."""
    connection, transport, _ = end(FromReplica)
    for messages in turns:
        for message in messages:
            connection.send(message)
        await asyncio.sleep(0)
    assert len(transport.written) == len(turns)
    return b"".join(transport.written)


FIELDS = {
    "prompt": "grüße \x00",
    "u64": 2**64 - 1,
    "i64": -(2**63),
    "image": bytes(range(256)),
    "nested": [{"a": None}, [1.5, True]],
    "by_number": {1: "one"},
}


@pytest.mark.parametrize("size", [1, 3, 7, 10_000])
async def test_messages_arrive_unchanged_wherever_the_bytes_are_split(size: int) -> None:
    messages: list[Any] = [StartRequest(1, FIELDS, "corr-1"), WindowUpdate(1, 2**40), StartRequest(2, {}, "")]
    data = await frames(messages[:1], messages[1:])
    connection, _, received = end(FromIngress)
    for begin in range(0, len(data), size):
        connection.data_received(data[begin : begin + size])
    assert received == messages


async def test_a_message_of_megabytes_is_complete_and_so_are_its_neighbours() -> None:
    messages: list[Any] = [Chunk(1, b"small", False), Chunk(2, bytes(range(256)) * 10_000, True), RequestAck(3)]
    connection, transport, _ = end(FromIngress)
    for message in messages:
        connection.send(message)
        await asyncio.sleep(0)
    data = b"".join(transport.written)
    other, _, received = end(FromReplica)
    for begin in range(0, len(data), 100_000):
        other.data_received(data[begin : begin + 100_000])
    assert received == messages


async def test_messages_sent_while_the_peer_does_not_read_are_one_frame() -> None:
    connection, transport, _ = end(FromIngress)
    connection.pause_writing()
    for stream_id in range(100):
        connection.send(Chunk(stream_id, b"x", False))
        await asyncio.sleep(0)
    assert transport.written == []
    connection.resume_writing()
    assert len(transport.written) == 1
    other, _, received = end(FromReplica)
    other.data_received(transport.written[0])
    assert [chunk.stream_id for chunk in received] == list(range(100))


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (2**64, OverflowError),
        (-(2**63) - 1, OverflowError),
        (object(), TypeError),
        ("\ud800", UnicodeEncodeError),
    ],
    ids=repr,
)
def test_a_value_without_a_form_in_messagepack_raises_at_its_sender(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        encoded(StartRequest(1, {"value": value}, ""))


async def test_a_message_that_cannot_be_encoded_closes_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    connection, transport, _ = end(FromIngress)
    connection.send(StartRequest(1, {"value": 2**64}, ""))
    await asyncio.sleep(0)
    assert transport.aborted
    assert "a message cannot be encoded" in caplog.text


@pytest.mark.parametrize("paused", [False, True])
async def test_encoded_messages_of_every_size_arrive_in_order(paused: bool) -> None:
    messages: list[Any] = [
        StartRequest(1, FIELDS, "corr"),
        WindowUpdate(1, 5),
        StartRequest(2, {"image": bytes(3_000_000)}, "corr"),
        StartRequest(3, {}, ""),
        WindowUpdate(2, 6),
    ]
    connection, transport, _ = end(FromReplica)
    if paused:
        connection.pause_writing()
    for message in messages:
        if isinstance(message, StartRequest):
            connection.send_encoded(encoded(message))
        else:
            connection.send(message)
    if paused:
        connection.resume_writing()
    await asyncio.sleep(0)
    other, _, received = end(FromIngress)
    other.data_received(b"".join(transport.written))
    assert received == messages


async def test_a_large_encoded_message_is_not_written_after_the_connection_is_lost() -> None:
    connection, transport, _ = end(FromReplica)
    transport.abort()
    connection.send_encoded(encoded(StartRequest(2, {"image": bytes(3_000_000)}, "corr")))
    assert transport.written == []


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"\x00\x00\x00\x01\xc1", "cannot be decoded"),
        (b"\x00\x00\x00\x02\x91\x05", "cannot be decoded"),
        (b"\x00\x00\x00\x05\xdd\xff\xff\xff\xff", "cannot be decoded"),
        (b"\x00\x00\x00\x50" + b"\x91" * 80, "cannot be decoded"),
        (b"\x00\x00\x00\x65", "a frame of 101 bytes where at most 100 are allowed"),
    ],
)
async def test_an_undecodable_or_oversized_frame_closes_the_connection_with_its_reason(
    frame: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    connection, transport, received = end(FromIngress, max_frame_bytes=100)
    connection.data_received(frame)
    assert transport.aborted
    assert received == []
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("closed the connection with 192.0.2.1:1234: ")
    assert reason in record.getMessage()


async def test_nesting_beyond_the_recursion_limit_closes_the_connection() -> None:
    body = msgspec.msgpack.encode([1, 1, {"a": 0}, ""]).replace(b"\xa1a\x00", b"\xa1a" + b"\x91" * 100_000 + b"\x00")
    connection, transport, received = end(FromIngress)
    connection.data_received((len(body) + 1).to_bytes(4) + b"\x91" + body)
    assert transport.aborted
    assert received == []


async def test_the_log_names_the_field_that_cannot_be_decoded_and_no_payload(caplog: pytest.LogCaptureFixture) -> None:
    load: Any = LoadProgress(stage="loading_to_vram", bytes_done=0.5)  # type: ignore[arg-type]
    state = ReplicaState(worker_id="secret", replica_id="r", boot_id="b", phase="loading", backend="cpu", load=load)
    body = msgspec.msgpack.encode([StateUpdate(1, state, 1)])
    connection, transport, _ = end(ToHub)
    connection.data_received(len(body).to_bytes(4) + body)
    assert transport.aborted
    assert "Expected `int | null`, got `float` - at `$[0][2].load.bytes_done`" in caplog.text
    assert "secret" not in caplog.text


async def test_nothing_is_written_after_the_connection_is_lost() -> None:
    connection, transport, _ = end(FromIngress)
    connection.send(RequestAck(1))
    transport.abort()
    connection.connection_lost(None)
    connection.send(RequestAck(2))
    await asyncio.sleep(0)
    assert transport.written == []
    assert connection.closed
