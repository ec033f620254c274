"""Memory that a replica has freed goes back to the system while it is idle."""

from __future__ import annotations

import asyncio
import ctypes
import sys

import psutil
import pytest

from rbee_serve.replica import idle_trim
from rbee_serve.replica.admission import Admission
from rbee_serve.replica.idle_trim import trim_while_idle

MIB = 2**20


@pytest.fixture
def trims(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One item for each time that memory is returned."""
    calls: list[None] = []
    monkeypatch.setattr(idle_trim, "_malloc_trim", lambda: lambda: calls.append(None))
    return calls


async def test_memory_is_returned_once_after_requests_and_not_while_one_runs(trims: list[None]) -> None:
    admission = Admission(capacity=1, max_queued=1)
    with admission.enter():
        trimming = asyncio.create_task(trim_while_idle(admission, 0.01))
        await asyncio.sleep(0.1)
        assert trims == []
    await asyncio.sleep(0.1)
    assert len(trims) == 1
    with admission.enter():
        pass
    await asyncio.sleep(0.1)
    assert len(trims) == 2
    trimming.cancel()


async def test_without_the_function_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    async with asyncio.timeout(1):
        await trim_while_idle(Admission(capacity=1, max_queued=0), 0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux has malloc_trim")
async def test_free_memory_between_pieces_in_use_is_returned() -> None:
    malloc, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
    malloc.restype, malloc.argtypes, free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    pieces = [malloc(64 * 1024) for _ in range(2048)]
    for piece in pieces:
        ctypes.memset(piece, 1, 64 * 1024)
    for piece in pieces[:-1]:  # the last one keeps the heap from shrinking
        free(piece)
    before = psutil.Process().memory_info().rss
    trimming = asyncio.create_task(trim_while_idle(Admission(capacity=1, max_queued=0), 0.01))
    async with asyncio.timeout(10):
        while before - psutil.Process().memory_info().rss < 64 * MIB:  # noqa: ASYNC110 (nothing notifies)
            await asyncio.sleep(0.01)
    trimming.cancel()
    free(pieces[-1])
