"""The ingress's own server, on real sockets."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from rbee_serve.config import LimitsConfig
from rbee_serve.ingress.cors import Cors
from rbee_serve.ingress.listener import Address, Listener
from tests.conftest import free_port


def answering(text: str, delay_s: float = 0.0) -> ASGIApp:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(delay_s)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": text.encode()})

    return app


@pytest.fixture
def address() -> Address:
    return Address("127.0.0.1", free_port())


async def get(address: Address) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(f"http://{address.host}:{address.port}/")


async def test_it_responds_without_a_server_header(address: Address) -> None:
    listener = Listener(answering("here"), address)
    answer = await get(address)
    assert answer.text == "here"
    assert "server" not in answer.headers
    await listener.close(1)


async def test_a_second_listener_takes_over_from_the_first(address: Address) -> None:
    first = Listener(answering("first"), address)
    assert (await get(address)).text == "first"
    second = Listener(answering("second"), address)
    await asyncio.sleep(0.2)
    await first.close(1)
    assert {(await get(address)).text for _ in range(10)} == {"second"}
    await second.close(1)


async def test_requests_that_were_sent_before_the_takeover_are_served(address: Address) -> None:
    first, second = Listener(answering("here"), address), Listener(answering("here"), address)
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    open_before = []
    for _ in range(8):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(request)
        assert (await reader.readuntil(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        open_before.append((reader, writer))
    waiting = [socket.create_connection((address.host, address.port)) for _ in range(40)]
    for connection in waiting:  # the event loop has not turned since: they wait in the backlog of one of the two
        connection.sendall(request)
    for _, writer in open_before:
        writer.write(request)
    await first.close(3)
    responses = [await reader.readuntil(b"0\r\n\r\n") for reader, _ in open_before]
    responses += [await asyncio.to_thread(connection.recv, 1000) for connection in waiting]
    assert all(response.startswith(b"HTTP/1.1 200 ") for response in responses)
    for connection in waiting:
        connection.close()
    for _, writer in open_before:
        writer.close()
    await second.close(1)


async def test_closing_finishes_open_requests_and_accepts_no_new_ones(address: Address) -> None:
    listener = Listener(answering("late", delay_s=0.5), address)
    open_request = asyncio.create_task(get(address))
    await asyncio.sleep(0.2)
    await listener.close(3)
    assert (await open_request).text == "late"
    with pytest.raises(httpx.ConnectError):
        await get(address)


@pytest.mark.parametrize(("origin", "readable"), [("https://app.example", True), ("https://evil.example", False)])
async def test_an_allowed_page_can_read_what_the_listener_refuses(
    address: Address, origin: str, readable: bool
) -> None:
    cors = Cors(["https://app.example"])
    listener = Listener(answering("never"), address, LimitsConfig(max_header_bytes=4096), cors=cors)
    async with httpx.AsyncClient() as client:
        url = f"http://{address.host}:{address.port}/"
        response = await client.get(url, headers={"Origin": origin, "X-Long": "x" * 4096})
    assert response.status_code == 431
    assert response.headers.get("access-control-allow-origin") == (origin if readable else None)
    assert response.headers["vary"] == "Origin"
    await listener.close(1)


async def test_the_port_of_another_program_is_not_shared(address: Address) -> None:
    with socket.create_server((address.host, address.port)), pytest.raises(OSError, match="in use"):
        Listener(answering("never"), address)
