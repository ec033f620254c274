"""Clients that disconnect: their slots are free again, whichever frontend their request came through."""

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
from tests.served.frontends import Frontend, via
from tests.served.measured import measured
from tests.served.waiting import eventually

pytestmark = pytest.mark.ray

WORKER = "echo-eight"
SLOTS = 8
ROUNDS = 13
"""With `SLOTS` clients in each, more than a hundred disconnect during their streams and as many while they wait."""
INFER = f"/workers/{WORKER}/v1/inference"
ENDLESS = {"prompt": "word", "repeat": 100_000, "tokens_per_sec": 20}


class Client:
    """A connection with one request on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def send(cls, frontend: Frontend, request: bytes) -> Client:
        """Connect and send the request."""
        url = httpx.URL(frontend.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(frontend.with_token(request))
        return cls(reader, writer)

    async def read_until(self, text: str) -> None:
        """Read until the text has been received."""
        await self._reader.readuntil(text.encode())

    def disconnect(self, abruptly: bool) -> None:
        """Close the connection, abruptly with a reset."""
        if abruptly:
            self._writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        self._writer.transport.abort()


def endless(**fields: Any) -> bytes:
    return whole(INFER, json.dumps({**ENDLESS, **fields}).encode())


async def fill_slots(frontend: Frontend, **fields: Any) -> list[Client]:
    """As many clients as there are slots."""
    return await asyncio.gather(*(Client.send(frontend, endless(**fields)) for _ in range(SLOTS)))


async def read_until(clients: Iterable[Client], text: str) -> float:
    """All clients read until the text. Returns the time at which the last one had it."""
    async with asyncio.timeout(20):
        await asyncio.gather(*(client.read_until(text) for client in clients))
    return time.monotonic()


def disconnect(clients: Iterable[Client]) -> float:
    """All clients disconnect, every second one abruptly. Returns the time."""
    for n, client in enumerate(clients):
        client.disconnect(abruptly=n % 2 == 0)
    return time.monotonic()


async def wait_for_state(frontend: Frontend, state: str) -> None:
    await asyncio.to_thread(eventually, lambda: frontend.state(WORKER) == state)


async def replace(frontend: Frontend, clients: list[Client]) -> tuple[list[Client], float]:
    """The clients that have all slots disconnect while as many streams are queued. Returns those, and the seconds until
    all of them had a slot."""
    queued = await fill_slots(frontend)
    await read_until(queued, '"queued"')
    disconnected_at = disconnect(clients)
    return queued, await read_until(queued, '"token"') - disconnected_at


@via("own", "throughput", "default", "haproxy")
async def test_a_disconnect_during_a_stream_frees_the_slot_within_a_second(frontend: Frontend) -> None:
    times = []
    await wait_for_state(frontend, "idle")
    streaming = await fill_slots(frontend)
    await read_until(streaming, '"token"')
    for _ in range(ROUNDS):
        streaming, seconds = await replace(frontend, streaming)
        times.append(seconds)
    disconnect(streaming)
    measured(f"disconnect in a stream ({frontend.mode})", f"a slot is free (longest of {ROUNDS})", max(times), 1)


@via("own", "throughput", "default", "haproxy")
async def test_a_disconnect_while_waiting_for_one_result_frees_the_slot_within_a_second(frontend: Frontend) -> None:
    times = []
    for _ in range(ROUNDS):
        await wait_for_state(frontend, "idle")
        waiting = await fill_slots(frontend, stream=False)
        await wait_for_state(frontend, "busy")
        streaming, seconds = await replace(frontend, waiting)
        times.append(seconds)
        disconnect(streaming)
    measured(f"disconnect from a result ({frontend.mode})", f"a slot is free (longest of {ROUNDS})", max(times), 1)


async def connect_and_disconnect(frontend: Frontend, moment: str, fraction: float, abruptly: bool) -> None:
    """A client that disconnects at the `fraction` of that phase of its request."""
    request = endless(stream=moment != "waiting")
    sent = request[: int(fraction * len(request))] if moment == "sending" else request
    client = await Client.send(frontend, sent)
    if moment == "reading":
        for _ in range(int(fraction * 5)):
            await client.read_until("\n\n")
    elif moment == "waiting":
        await asyncio.sleep(fraction / 10)
    client.disconnect(abruptly)


@via("own", "throughput")
async def test_a_thousand_random_disconnects_leave_nothing_behind(frontend: Frontend, served: Served) -> None:
    rng = random.Random(20261123)
    moments = ["sending", "sent", "reading", "waiting"]
    clients = [(rng.choice(moments), rng.random(), rng.random() < 0.5) for _ in range(1000)]
    limit = asyncio.Semaphore(32)

    async def run(client: tuple[str, float, bool]) -> None:
        async with limit:
            await connect_and_disconnect(frontend, *client)

    await asyncio.gather(*map(run, clients))
    await asyncio.to_thread(eventually, lambda: served.working(WORKER) == 0, 2)
    for _ in range(100):
        response = frontend.client.post(INFER, json={"prompt": "still here", "stream": False})
        assert (response.status_code, response.json()["text"]) == (200, "still here")
    await asyncio.to_thread(eventually, lambda: served.working(WORKER) == 0, 2)  # no late request started
