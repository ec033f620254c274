"""Clients that leave: their places are free again, whichever way their request came in."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import time
from collections.abc import Iterable
from typing import Any

import httpx
import pytest

from tests.conftest import Served
from tests.raw_http import whole
from tests.served.frontends import Frontend, through
from tests.served.waiting import eventually

pytestmark = pytest.mark.ray

WORKER = "echo-eight"
PLACES = 8
ROUNDS = 13
"""With `PLACES` clients in each, more than a hundred leave their streams and as many leave while they wait."""
INFER = f"/workers/{WORKER}/v1/inference"
ENDLESS = {"prompt": "word", "repeat": 100_000, "tokens_per_sec": 20}


class Client:
    """A connection with one request on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def asks(cls, door: Frontend, request: bytes) -> Client:
        url = httpx.URL(door.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(door.admitted(request))
        return cls(reader, writer)

    async def reads(self, text: str) -> None:
        """Read until it has come."""
        await self._reader.readuntil(text.encode())

    def leaves(self, abruptly: bool) -> None:
        """Close the connection, abruptly with a reset."""
        if abruptly:
            self._writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        self._writer.transport.abort()


def endless(**fields: Any) -> bytes:
    return whole(INFER, json.dumps({**ENDLESS, **fields}).encode())


async def ask(door: Frontend, **fields: Any) -> list[Client]:
    """As many clients as there are places."""
    return await asyncio.gather(*(Client.asks(door, endless(**fields)) for _ in range(PLACES)))


async def read(clients: Iterable[Client], text: str) -> float:
    """All read until it has come. When that was."""
    async with asyncio.timeout(20):
        await asyncio.gather(*(client.reads(text) for client in clients))
    return time.monotonic()


def leave(clients: Iterable[Client]) -> float:
    """All leave, every second one abruptly. When that was."""
    for n, client in enumerate(clients):
        client.leaves(abruptly=n % 2 == 0)
    return time.monotonic()


async def until(door: Frontend, state: str) -> None:
    await asyncio.to_thread(eventually, lambda: door.state(WORKER) == state)


async def move_up(door: Frontend, leaving: list[Client]) -> tuple[list[Client], float]:
    """Those who have all places leave, while as many streams wait in the queue. Those, and how long it took until all
    of them had a place."""
    queued = await ask(door)
    await read(queued, '"queued"')
    left_at = leave(leaving)
    return queued, await read(queued, '"token"') - left_at


@through("own", "throughput", "default", "haproxy")
async def test_who_leaves_a_stream_gives_up_the_place_within_a_second(door: Frontend) -> None:
    took = []
    await until(door, "idle")
    streaming = await ask(door)
    await read(streaming, '"token"')
    for _ in range(ROUNDS):
        streaming, seconds = await move_up(door, streaming)
        took.append(seconds)
    leave(streaming)
    assert max(took) < 1, took


@through("own", "throughput", "default", "haproxy")
async def test_who_leaves_while_waiting_for_one_result_gives_up_the_place_within_a_second(door: Frontend) -> None:
    took = []
    for _ in range(ROUNDS):
        await until(door, "idle")
        waiting = await ask(door, stream=False)
        await until(door, "busy")
        streaming, seconds = await move_up(door, waiting)
        took.append(seconds)
        leave(streaming)
    assert max(took) < 1, took


async def come_and_go(door: Frontend, how: str, part: float, abruptly: bool) -> None:
    """A client that leaves when a `part` of the way that it goes is done."""
    request = endless(stream=how != "waiting")
    client = await Client.asks(door, request[: int(part * len(request))] if how == "asking" else request)
    if how == "reading":
        for _ in range(int(part * 5)):
            await client.reads("\n\n")
    elif how == "waiting":
        await asyncio.sleep(part / 10)
    client.leaves(abruptly)


@through("own", "throughput")
async def test_after_a_thousand_random_disconnects_nothing_is_left(door: Frontend, served: Served) -> None:
    dice = random.Random(20261123)
    ways = ["asking", "asked", "reading", "waiting"]
    clients = [(dice.choice(ways), dice.random(), dice.random() < 0.5) for _ in range(1000)]
    at_once = asyncio.Semaphore(32)

    async def one_of_them(client: tuple[str, float, bool]) -> None:
        async with at_once:
            await come_and_go(door, *client)

    await asyncio.gather(*map(one_of_them, clients))
    await asyncio.to_thread(eventually, lambda: served.working(WORKER) == 0, 2)
    for _ in range(100):
        answer = door.client.post(INFER, json={"prompt": "still here", "stream": False})
        assert (answer.status_code, answer.json()["text"]) == (200, "still here")
    await asyncio.to_thread(eventually, lambda: served.working(WORKER) == 0, 2)  # and nobody was late
