"""The hub's connections: pushes in, snapshots out, and what becomes of them when the hub goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from rbee_serve.config import WorkerConfig
from rbee_serve.hub.replica_registry import ReplicaRegistry
from rbee_serve.hub.state_server import StateServer
from rbee_serve.state import LoadProgress, ReplicaState
from rbee_serve.transport.acceptor import Acceptor, Endpoint
from rbee_serve.transport.framing import FramedConnection
from rbee_serve.transport.state_client import StateClient
from rbee_serve.transport.state_messages import ToHub

HOST = "127.0.0.1"


class Hub:
    """What Ray leads to: one process of the hub after another."""

    def __init__(self) -> None:
        self.reached = 0
        self.wires: list[FramedConnection[ToHub]] = []
        self.entrances: list[Acceptor[ToHub]] = []
        self.restart()

    def restart(self) -> None:
        """Another process, whose roster is empty."""
        for wire in self.wires:
            wire._abort()
        self.wires = []
        self.registry = ReplicaRegistry([WorkerConfig(id="echo-0", type="echo")])
        self.lines = StateServer(self.registry)
        admit = self.lines.entrance._admit

        def noted(wire: FramedConnection[ToHub]) -> object:
            self.wires.append(wire)
            return admit(wire)

        self.lines.entrance._admit = noted  # type: ignore[assignment]
        self.entrances.append(self.lines.entrance)

    async def reach(self) -> Endpoint:
        """The call through Ray."""
        self.reached += 1
        return await self.lines.entrance.place(HOST)


@asynccontextmanager
async def hub_and_line() -> AsyncIterator[tuple[Hub, StateClient]]:
    hub = Hub()
    line = StateClient(hub.reach)
    try:
        async with asyncio.timeout(10):
            yield hub, line
    finally:
        line.close()
        for entrance in hub.entrances:
            await entrance.close()
        await asyncio.sleep(0.01)


def state(running: int = 0) -> ReplicaState:
    load = LoadProgress(stage="loading_to_vram", bytes_done=3, bytes_total=5)
    return ReplicaState(
        worker_id="echo-0", replica_id="r", boot_id="b", phase="ready", backend="cpu", load=load, running=running
    )


async def test_a_push_has_arrived_when_it_returns_and_is_what_was_pushed() -> None:
    async with hub_and_line() as (hub, line):
        await line.push(state(2), 1)
        assert hub.registry.worker("echo-0").replicas == (state(2),)
        await line.push(state(1), 2)
        await line.push(state(7), 1)  # overtaken
        assert hub.registry.worker("echo-0").replicas == (state(1),)
        assert hub.reached == 1


async def test_who_watches_hears_of_a_change_at_once_and_gets_the_whole_snapshot() -> None:
    async with hub_and_line() as (hub, line):
        first = await line.watch(-1, 60)
        watching = asyncio.create_task(line.watch(first.version, 60))
        await asyncio.sleep(0.05)
        assert not watching.done()
        await line.push(state(1), 1)
        assert await watching == hub.registry.snapshot()


async def test_who_watches_for_so_long_in_vain_gets_what_there_is() -> None:
    async with hub_and_line() as (_, line):
        first = await line.watch(-1, 60)
        assert await line.watch(first.version, 0.05) == first


async def test_a_change_that_no_push_brought_is_heard_of_too() -> None:
    async with hub_and_line() as (hub, line):
        first = await line.watch(-1, 60)
        watching = asyncio.create_task(line.watch(first.version, 60))
        await asyncio.sleep(0.05)
        hub.registry.stop()
        hub.lines.notice()
        assert (await watching).stopping


async def test_when_the_hub_dies_who_waits_is_told_and_the_next_call_finds_the_new_one() -> None:
    async with hub_and_line() as (hub, line):
        first = await line.watch(-1, 60)
        watching = asyncio.create_task(line.watch(first.version, 60))
        await asyncio.sleep(0.05)
        hub.restart()
        with pytest.raises(ConnectionError, match="the hub is gone"):
            await watching
        await line.push(state(), 2)
        assert hub.registry.worker("echo-0").ready
        assert hub.reached == 2


async def test_a_hub_that_cannot_be_reached_is_asked_for_again_by_the_next_call() -> None:
    async with hub_and_line() as (hub, line):
        hub.lines.entrance, away = None, hub.lines.entrance  # type: ignore[assignment]
        for _ in range(2):
            with pytest.raises(AttributeError):
                await line.push(state(), 1)
        hub.lines.entrance = away
        await line.push(state(), 1)
        assert hub.reached == 3


async def test_what_is_not_waited_for_any_longer_does_no_harm() -> None:
    async with hub_and_line() as (_, line):
        first = await line.watch(-1, 60)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await line.watch(first.version, 60)
        await line.push(state(), 1)  # answers both
        await line.push(state(1), 2)
        assert (await line.watch(first.version, 60)).worker("echo-0").replicas == (state(1),)  # type: ignore[union-attr]


async def test_nobody_without_the_key_is_listened_to() -> None:
    async with hub_and_line() as (hub, _):
        place = await hub.reach()

        async def misled() -> Endpoint:
            return Endpoint(place.host, place.port, "0" * 64)

        stranger = StateClient(misled)
        with pytest.raises(ConnectionError):
            await stranger.push(state(), 1)
        assert hub.registry.worker("echo-0").replicas == ()


async def test_a_connection_that_was_given_up_does_not_end_the_one_after_it() -> None:
    async with hub_and_line() as (hub, line):
        first = await line.watch(-1, 60)
        watching = asyncio.create_task(line.watch(first.version, 60))
        await asyncio.sleep(0.05)
        line._lost(asyncio.current_task())  # what an older one says when it is closed at last
        await line.push(state(), 1)
        assert (await watching).version > first.version
        assert hub.reached == 1
