"""Where the internal connections listen."""

from __future__ import annotations

import asyncio
import socket

import psutil
import pytest

from rbee_serve.transport import client_connection
from rbee_serve.transport.acceptor import Acceptor
from rbee_serve.transport.client_connection import connect
from rbee_serve.transport.framing import FramedConnection
from rbee_serve.transport.handshake import Endpoint, Hello
from tests.conftest import free_port


def listening() -> set[tuple[str, int]]:
    """The addresses at which this process listens."""
    sockets = psutil.Process().net_connections("inet")
    return {(s.laddr.ip, s.laddr.port) for s in sockets if s.status == psutil.CONN_LISTEN}


def acceptor() -> Acceptor[Hello]:
    def admit(connection: object) -> None:
        raise AssertionError

    return Acceptor(Hello, admit)  # type: ignore[arg-type]


async def test_for_processes_of_the_same_machine_only_the_loopback_address_is_bound() -> None:
    before = listening()
    local = acceptor()
    endpoint = await local.endpoint("127.0.0.1")
    assert listening() - before == {("127.0.0.1", endpoint.port)}
    await local.close()


async def test_small_messages_are_sent_at_once_by_both_ends() -> None:
    accepted: list[socket.socket] = []

    class Handler:
        def receive(self, message: Hello) -> None: ...
        def lost(self) -> None: ...

    def admit(connection: FramedConnection[Hello]) -> Handler:
        assert connection._transport is not None
        accepted.append(connection._transport.get_extra_info("socket"))
        return Handler()

    local: Acceptor[Hello] = Acceptor(Hello, admit)
    connection = await connect(await local.endpoint("127.0.0.1"), Hello, print, lambda: None)
    async with asyncio.timeout(5):
        while not accepted:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert connection._transport is not None
    for end in (accepted[0], connection._transport.get_extra_info("socket")):
        assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    connection.close()
    await local.close()


async def test_an_endpoint_has_a_port_of_the_range_and_keeps_it() -> None:
    ports = range(free_port(), 65536)
    first, second = acceptor(), acceptor()
    endpoint = await first.endpoint("127.0.0.2", ports)
    assert endpoint.port in ports
    assert await first.endpoint("127.0.0.2", ports) == endpoint
    assert (await second.endpoint("127.0.0.2", ports)).port in ports[1:]
    await first.close()
    await second.close()


async def test_an_exhausted_range_is_in_the_log_of_the_process_that_cannot_be_reached(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.2", 0)) as other:
        port = other.getsockname()[1]
        busy = acceptor()
        for _ in range(2):
            with pytest.raises(OSError, match="wider range"):
                await busy.endpoint("127.0.0.2", range(port, port + 1))
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 2
    assert f"RBEE_SERVE_PORTS={port}-{port} at 127.0.0.2 is taken" in caplog.text
    assert (await busy.endpoint("127.0.0.2", range(port, port + 1))).port == port
    await busy.close()


async def test_behind_a_nat_the_endpoint_names_the_address_that_other_nodes_use() -> None:
    behind = acceptor()
    endpoint = await behind.endpoint("192.0.2.1")
    assert endpoint.host == "192.0.2.1"
    assert ("0.0.0.0", endpoint.port) in listening()
    await behind.close()


async def test_a_connection_that_cannot_be_had_names_address_port_and_what_to_set() -> None:
    with socket.create_server(("127.0.0.2", 0)) as closing:
        port = closing.getsockname()[1]
    with pytest.raises(ConnectionError) as refused:
        await connect(Endpoint("127.0.0.2", port, "token"), Hello, print, lambda: None)
    assert str(refused.value) == (
        f"no connection to 127.0.0.2:{port} (connection refused); if a firewall is between the nodes, let a range of "
        "ports through and set RBEE_SERVE_PORTS to it"
    )


async def test_an_address_that_does_not_respond_is_given_up_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_connection, "HANDSHAKE_S", 0.2)
    with socket.create_server(("127.0.0.2", 0)) as silent:  # as behind a firewall that drops packets
        port = silent.getsockname()[1]
        with pytest.raises(ConnectionError, match=rf"127\.0\.0\.2:{port} \(no response within 0\.2 s\); if a firewall"):
            await connect(Endpoint("127.0.0.2", port, "token"), Hello, print, lambda: None)


async def test_within_a_node_no_firewall_is_suspected() -> None:
    with pytest.raises(ConnectionError) as refused:
        await connect(Endpoint("127.0.0.1", 1, "token"), Hello, print, lambda: None)
    assert str(refused.value) == "no connection to 127.0.0.1:1 (connection refused)"
