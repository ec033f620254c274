"""Who works, who waits, who is refused."""

from __future__ import annotations

import asyncio

import pytest

from rbee_serve.errors import InsufficientResources
from rbee_serve.replica.admission import Admission


async def hold(admission: Admission, entered: list[int], number: int, leave: asyncio.Event) -> None:
    with admission.enter() as place:
        while not await place.wait(60):
            pass
        entered.append(number)
        await leave.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_requests_beyond_capacity_wait_and_enter_in_the_order_of_their_arrival() -> None:
    admission, leave = Admission(2, 10), asyncio.Event()
    entered: list[int] = []
    tasks = [asyncio.create_task(hold(admission, entered, number, leave)) for number in range(5)]
    await settle()
    assert (entered, admission.running, admission.queued) == ([0, 1], 2, 3)
    leave.set()
    await asyncio.gather(*tasks)
    assert (entered, admission.running, admission.queued) == ([0, 1, 2, 3, 4], 0, 0)


async def test_a_request_beyond_the_queue_is_refused_at_once() -> None:
    admission, leave = Admission(1, 1), asyncio.Event()
    tasks = [asyncio.create_task(hold(admission, [], number, leave)) for number in range(2)]
    await settle()
    with pytest.raises(InsufficientResources, match="1 requests run and 1 wait"):
        admission.enter()
    leave.set()
    await asyncio.gather(*tasks)


async def test_places_are_released_whenever_a_request_is_cancelled() -> None:
    admission, leave = Admission(1, 10), asyncio.Event()
    entered: list[int] = []
    tasks = [asyncio.create_task(hold(admission, entered, number, leave)) for number in range(6)]
    await settle()
    tasks[3].cancel()
    tasks[0].cancel()
    tasks[1].cancel()
    await settle()
    assert (entered, admission.running, admission.queued) == ([0, 2], 1, 2)
    leave.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (entered, admission.running, admission.queued) == ([0, 2, 4, 5], 0, 0)


async def test_a_request_cancelled_in_the_moment_of_its_turn_passes_its_place_on() -> None:
    admission, leave = Admission(1, 10), asyncio.Event()
    entered: list[int] = []
    tasks = [asyncio.create_task(hold(admission, entered, number, leave)) for number in range(3)]
    await settle()
    leave.set()
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (entered, admission.running, admission.queued) == ([0, 2], 0, 0)
