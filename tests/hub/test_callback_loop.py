"""DNS lookups that hang, on a real loop with a patched `getaddrinfo`."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from rbee_serve.hub.orchestrator import callback_loop
from rbee_serve.hub.orchestrator.callback_loop import MAX_LOOKUPS, CallbackLoop
from tests.hub.lookups import Lookups, lookup_threads
from tests.hub.receivers import eventually

PORT = 9200


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lookups]:
    lookups = Lookups()
    monkeypatch.setattr(socket, "getaddrinfo", lookups.getaddrinfo)
    yield lookups
    lookups.release()
    eventually(lambda: not lookup_threads())


def run(work: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=CallbackLoop) as runner:
        return runner.run(work)


async def addresses(host: str = "hive.example", within_s: float = 5.0) -> list[str]:
    async with asyncio.timeout(within_s):
        found = await asyncio.get_running_loop().getaddrinfo(host, PORT, type=socket.SOCK_STREAM)
    return [str(address[4][0]) for address in found]


def test_a_name_has_its_addresses(lookups: Lookups) -> None:
    assert run(addresses()) == ["127.0.0.1"]


@pytest.mark.parametrize("host", ["nobody.example", "a" * 300])
def test_a_name_without_an_address_is_an_error(lookups: Lookups, host: str) -> None:
    with pytest.raises(socket.gaierror, match="has no address"):
        run(addresses(host))


def test_calls_share_a_lookup_that_hangs_and_a_late_result_serves_the_next_call(lookups: Lookups) -> None:
    async def call() -> None:
        lookups.hang()
        for _ in range(20):
            with pytest.raises(TimeoutError):
                await addresses(within_s=0.01)
        assert lookups.started == 1
        assert lookup_threads() == 1
        lookups.release()
        assert await addresses() == ["127.0.0.1"]
        assert lookups.started == 1

    run(call())


def test_other_names_are_looked_up_while_one_hangs(lookups: Lookups) -> None:
    async def call() -> None:
        lookups.hang("hive.example")
        hanging = asyncio.create_task(addresses())
        assert await addresses("other.example") == ["127.0.0.1"]
        assert not hanging.done()
        hanging.cancel()

    run(call())


def test_lookups_that_hang_for_ever_do_not_grow_threads(lookups: Lookups, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callback_loop, "FRESH_S", 0.0)

    async def call() -> None:
        lookups.hang()
        for _ in range(3 * MAX_LOOKUPS):
            with pytest.raises(TimeoutError):
                await addresses(within_s=0.01)
        assert lookups.started == MAX_LOOKUPS
        assert lookup_threads() == MAX_LOOKUPS

    run(call())


def test_after_a_recovery_a_call_does_not_wait_for_the_lookup_that_hangs(
    lookups: Lookups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callback_loop, "FRESH_S", 0.1)

    async def call() -> None:
        lookups.hang()
        with pytest.raises(TimeoutError):
            await addresses(within_s=0.01)
        lookups.recover()
        with pytest.raises(TimeoutError):
            await addresses(within_s=0.01)
        await asyncio.sleep(0.1)
        assert await addresses(within_s=1) == ["127.0.0.1"]

    run(call())


def test_a_lookup_that_failed_when_nobody_waited_is_not_the_next_result(lookups: Lookups) -> None:
    async def call() -> None:
        lookups.hang("hive.example", fails=True)
        with pytest.raises(TimeoutError):
            await addresses(within_s=0.01)
        lookups.release()
        await asyncio.sleep(0.1)
        assert await addresses() == ["127.0.0.1"]
        assert lookups.started == 2

    run(call())


def test_a_lookup_that_fails_leaves_the_call_to_a_newer_one(lookups: Lookups, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callback_loop, "FRESH_S", 0.0)

    async def call() -> None:
        lookups.hang("hive.example", fails=True)
        with pytest.raises(TimeoutError):
            await addresses(within_s=0.01)
        fail_first = lookups.recover()
        lookups.hang()
        newer = asyncio.create_task(addresses())
        await asyncio.sleep(0.05)
        fail_first()
        await asyncio.sleep(0.05)
        assert not newer.done()
        lookups.release()
        assert await newer == ["127.0.0.1"]

    run(call())


def test_a_lookup_that_hangs_does_not_delay_the_end_of_the_loop(lookups: Lookups) -> None:
    async def call() -> None:
        with pytest.raises(TimeoutError):
            await addresses(within_s=0.01)

    lookups.hang()
    began = time.monotonic()
    run(call())
    assert time.monotonic() - began < 1
