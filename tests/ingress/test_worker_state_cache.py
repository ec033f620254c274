"""The snapshots that the ingress receives, and what it does with a change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from rbee_serve.ingress.worker_state_cache import WorkerStateCache
from rbee_serve.state import Snapshot
from tests.ingress.application import snapshot_of
from tests.ingress.deployment_handle import soon


class Follower:
    """A cache that follows these snapshots, and the calls that it made."""

    def __init__(self, *snapshots: Snapshot) -> None:
        self.calls: list[str] = []
        self._snapshots = list(snapshots)
        self.states = WorkerStateCache(self._watch, ("echo-0",))

    async def _watch(self, version: int, max_wait_s: float) -> Snapshot:
        if not self._snapshots:
            await asyncio.Event().wait()
        return self._snapshots.pop(0)

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """While it follows, after the last snapshot has arrived."""
        last = self._snapshots[-1]
        task = asyncio.create_task(self.states.follow(self.calls.append, lambda: self.calls.append("abort")))
        await soon(lambda: self.states.snapshot is last)
        yield
        task.cancel()


async def test_a_worker_that_loses_its_last_serving_replica_is_reported_once() -> None:
    serving, gone = (snapshot_of("echo-0", serving=serves) for serves in (True, False))
    follower = Follower(gone, serving, serving, gone, gone)
    async with follower.following():
        assert follower.calls == ["echo-0"]
        assert not follower.states.worker("echo-0").serving


async def test_an_abort_is_reported_once() -> None:
    aborting = msgspec.structs.replace(snapshot_of("echo-0"), aborting=True)
    follower = Follower(snapshot_of("echo-0"), aborting, msgspec.structs.replace(aborting, version=9))
    async with follower.following():
        assert follower.calls == ["abort"]


async def test_a_configured_worker_is_known_before_the_first_snapshot() -> None:
    assert Follower().states.worker("echo-0").availability == "loading"
