"""Admission: which requests run, wait or are refused."""

from __future__ import annotations

import asyncio

import pytest

from rbee_serve.errors import InsufficientResources
from rbee_serve.replica.admission import Admission


async def hold(admission: Admission, entered: list[int], request: int, leave: asyncio.Event) -> None:
    with admission.enter() as slot:
        while not await slot.wait(60):
            pass
        entered.append(request)
        await leave.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_requests_beyond_capacity_run_in_order_of_arrival() -> None:
    admission, leave = Admission(2, 10), asyncio.Event()
    entered: list[int] = []
    tasks = [asyncio.create_task(hold(admission, entered, request, leave)) for request in range(5)]
    await settle()
    assert (entered, admission.running, admission.queued) == ([0, 1], 2, 3)
    leave.set()
    await asyncio.gather(*tasks)
    assert (entered, admission.running, admission.queued) == ([0, 1, 2, 3, 4], 0, 0)


async def test_a_request_beyond_the_queue_limit_is_refused_at_once() -> None:
    admission, leave = Admission(1, 1), asyncio.Event()
    tasks = [asyncio.create_task(hold(admission, [], request, leave)) for request in range(2)]
    await settle()
    with pytest.raises(InsufficientResources, match="1 running and 1 queued requests"):
        admission.enter()
    leave.set()
    await asyncio.gather(*tasks)


async def test_a_cancelled_request_frees_its_slot() -> None:
    admission, leave = Admission(1, 10), asyncio.Event()
    entered: list[int] = []
    tasks = [asyncio.create_task(hold(admission, entered, request, leave)) for request in range(6)]
    await settle()
    tasks[3].cancel()
    tasks[0].cancel()
    tasks[1].cancel()
    await settle()
    assert (entered, admission.running, admission.queued) == ([0, 2], 1, 2)
    leave.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (entered, admission.running, admission.queued) == ([0, 2, 4, 5], 0, 0)


async def test_a_request_cancelled_while_being_admitted_passes_its_slot_on() -> None:
    admission, leave = Admission(1, 10), asyncio.Event()
    entered: list[int] = []
    tasks = [asyncio.create_task(hold(admission, entered, request, leave)) for request in range(3)]
    await settle()
    leave.set()
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (entered, admission.running, admission.queued) == ([0, 2], 0, 0)
