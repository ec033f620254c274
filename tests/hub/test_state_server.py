"""The hub's connections: updates in, snapshots out, and the loss of either end."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from rbee_serve.config import WorkerConfig
from rbee_serve.hub.replica_registry import ReplicaRegistry
from rbee_serve.hub.state_server import StateServer
from rbee_serve.state import LoadProgress, ReplicaState
from rbee_serve.transport import client_connection
from rbee_serve.transport.acceptor import Acceptor
from rbee_serve.transport.framing import FramedConnection
from rbee_serve.transport.handshake import Endpoint
from rbee_serve.transport.state_client import StateClient
from rbee_serve.transport.state_messages import ToHub

HOST = "127.0.0.1"


class Hub:
    """What Ray leads to: one process of the hub after another."""

    def __init__(self) -> None:
        self.reached = 0
        self.is_away = False
        self.connections: list[FramedConnection[ToHub]] = []
        self.acceptors: list[Acceptor[ToHub]] = []
        self.restart()

    def restart(self) -> None:
        """Another process, whose registry is empty."""
        for connection in self.connections:
            connection.abort("the hub dies")
        self.connections = []
        self.registry = ReplicaRegistry([WorkerConfig(id="echo-0", type="echo")])
        self.server = StateServer(self.registry)
        admit = self.server.acceptor.admit

        def recorded(connection: FramedConnection[ToHub]) -> Any:
            self.connections.append(connection)
            return admit(connection)

        self.server.acceptor.admit = recorded
        self.acceptors.append(self.server.acceptor)

    async def reach(self) -> Endpoint:
        """The call through Ray."""
        self.reached += 1
        if self.is_away:
            raise RuntimeError("there is no hub")
        return await self.server.acceptor.endpoint(HOST)


@asynccontextmanager
async def hub_and_client() -> AsyncIterator[tuple[Hub, StateClient]]:
    hub = Hub()
    client = StateClient(hub.reach)
    try:
        async with asyncio.timeout(10):
            yield hub, client
    finally:
        client.close()
        for acceptor in hub.acceptors:
            await acceptor.close()
        await asyncio.sleep(0.01)


def state(running: int = 0, **changes: Any) -> ReplicaState:
    load = LoadProgress(stage="loading_to_vram", bytes_done=3, bytes_total=5)
    fields = {"worker_id": "echo-0", "replica_id": "r", "boot_id": "b", "phase": "ready", "backend": "cpu"}
    return ReplicaState(**{**fields, "load": load, "running": running, **changes})


async def test_an_update_has_arrived_unchanged_when_push_returns() -> None:
    async with hub_and_client() as (hub, client):
        await client.push(state(2), 1)
        assert hub.registry.worker("echo-0").replicas == (state(2),)
        await client.push(state(1), 2)
        await client.push(state(7), 1)  # overtaken
        assert hub.registry.worker("echo-0").replicas == (state(1),)
        assert hub.reached == 1


async def test_a_watch_returns_the_whole_snapshot_at_once_after_a_change() -> None:
    async with hub_and_client() as (hub, client):
        first = await client.watch(-1, 60)
        watching = asyncio.create_task(client.watch(first.version, 60))
        await asyncio.sleep(0.05)
        assert not watching.done()
        await client.push(state(1), 1)
        assert await watching == hub.registry.snapshot()


async def test_a_watch_without_a_change_returns_the_present_snapshot() -> None:
    async with hub_and_client() as (_, client):
        first = await client.watch(-1, 60)
        assert await client.watch(first.version, 0.05) == first


async def test_a_watch_returns_after_a_change_without_an_update() -> None:
    async with hub_and_client() as (hub, client):
        first = await client.watch(-1, 60)
        watching = asyncio.create_task(client.watch(first.version, 60))
        await asyncio.sleep(0.05)
        hub.registry.drain()
        hub.server.notify()
        assert (await watching).stopping


async def test_a_replica_whose_connection_is_lost_is_gone_at_once() -> None:
    async with hub_and_client() as (hub, watcher):
        replica = StateClient(hub.reach)
        await replica.push(state(), 1)
        serving = await watcher.watch(-1, 60)
        watching = asyncio.create_task(watcher.watch(serving.version, 60))
        await asyncio.sleep(0.05)
        replica.close()
        async with asyncio.timeout(1):
            gone = (await watching).worker("echo-0")
        assert gone is not None
        assert (gone.replicas, gone.was_ready) == ((), True)


async def test_the_error_of_a_replica_stays_when_its_connection_is_lost() -> None:
    async with hub_and_client() as (hub, _):
        replica = StateClient(hub.reach)
        await replica.push(state(phase="error", error="no weights"), 1)
        replica.close()
        await asyncio.sleep(0.05)
        assert hub.registry.worker("echo-0").error == "no weights"


async def test_a_lost_connection_does_not_remove_a_replica_that_has_connected_again() -> None:
    async with hub_and_client() as (hub, client):
        old = StateClient(hub.reach)
        await old.push(state(1), 1)
        await client.push(state(2), 2)
        old.close()
        await asyncio.sleep(0.05)
        assert hub.registry.worker("echo-0").replicas == (state(2),)


async def test_the_death_of_the_hub_fails_pending_calls_and_the_next_call_connects_to_the_new_one() -> None:
    async with hub_and_client() as (hub, client):
        first = await client.watch(-1, 60)
        watching = asyncio.create_task(client.watch(first.version, 60))
        await asyncio.sleep(0.05)
        hub.restart()
        with pytest.raises(ConnectionError, match="the connection was lost"):
            await watching
        await client.push(state(), 2)
        assert hub.registry.worker("echo-0").ready
        assert hub.reached == 2


async def test_concurrent_calls_open_one_connection() -> None:
    async with hub_and_client() as (hub, client):
        await asyncio.gather(*(client.watch(-1, 60) for _ in range(10)))
        assert hub.reached == 1


async def test_each_call_tries_again_to_reach_a_hub_that_is_away() -> None:
    async with hub_and_client() as (hub, client):
        hub.is_away = True
        for _ in range(2):
            with pytest.raises(RuntimeError, match="there is no hub"):
                await client.push(state(), 1)
        hub.is_away = False
        await client.push(state(), 1)
        assert hub.reached == 3


async def test_a_cancelled_call_leaves_the_connection_usable() -> None:
    async with hub_and_client() as (_, client):
        first = await client.watch(-1, 60)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.watch(first.version, 60)
        await client.push(state(), 1)  # answers both
        await client.push(state(1), 2)
        assert (await client.watch(first.version, 60)).worker("echo-0").replicas == (state(1),)  # type: ignore[union-attr]


async def test_a_state_that_cannot_be_encoded_raises_at_once_and_leaves_the_connection_usable() -> None:
    async with hub_and_client() as (hub, client):
        with pytest.raises(OverflowError):
            await client.push(state(memory_bytes=2**64), 1)
        await client.push(state(), 2)
        assert hub.reached == 1


async def test_a_state_that_the_hub_cannot_decode_is_in_its_log_with_the_field(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with hub_and_client() as (hub, client):
        with pytest.raises(ConnectionError):
            await client.push(state(memory_bytes=None), 1)
        assert "Expected `int`, got `None` - at `$[0][2].memory_bytes`" in caplog.text
        assert hub.registry.worker("echo-0").replicas == ()


async def test_a_client_without_the_token_changes_nothing() -> None:
    async with hub_and_client() as (hub, _):
        endpoint = await hub.reach()

        async def misled() -> Endpoint:
            return Endpoint(endpoint.host, endpoint.port, "0" * 64)

        stranger = StateClient(misled)
        with pytest.raises(ConnectionError, match="did not prove the token"):
            await stranger.push(state(), 1)
        assert hub.registry.worker("echo-0").replicas == ()


async def test_a_hub_that_does_not_respond_is_named_in_the_log_although_the_push_has_given_up_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client_connection, "HANDSHAKE_S", 0.2)
    with socket.create_server(("127.0.0.2", 0)) as silent:  # as behind a firewall that drops packets
        port = silent.getsockname()[1]

        async def reach() -> Endpoint:
            return Endpoint("127.0.0.2", port, "token")

        client = StateClient(reach)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.push(state(), 1)
        async with asyncio.timeout(5):
            while not caplog.records:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert f"the hub cannot be reached: no connection to 127.0.0.2:{port} (no response within 0.2 s); " in caplog.text


async def test_a_hub_that_starts_waits_for_the_replicas_that_run_before_its_first_snapshot() -> None:
    registry = ReplicaRegistry([WorkerConfig(id="echo-0", type="echo")])
    server = StateServer(registry, first_snapshot_within_s=5)
    first = asyncio.create_task(server.newer(0, 10))
    await asyncio.sleep(0.05)
    assert not first.done()
    registry.push(state())
    server.notify()
    async with asyncio.timeout(2):
        assert (await first).workers[0].ready


async def test_a_hub_without_replicas_sends_its_first_snapshot_after_a_while() -> None:
    server = StateServer(ReplicaRegistry([WorkerConfig(id="echo-0", type="echo")]), first_snapshot_within_s=0.1)
    started_at = time.monotonic()
    snapshot = await server.newer(0, 10)
    assert 0.1 <= time.monotonic() - started_at < 2
    assert snapshot.workers[0].availability == "loading"
