"""`check_worker_type` names what is wrong where a disconnect does not stop the work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import msgspec

from rbee_serve.worker import (
    LoadContext,
    Output,
    Progress,
    RequestClock,
)
from tests.testing.counting import Counter, CountOutput, CountRequest, async_backend, counting, refuses


def test_a_long_request_must_be_long_and_must_succeed() -> None:
    refuses(counting(long_request=lambda: CountRequest(number=2)), "too early to cancel it in the middle")

    class Failing(Counter):
        def predict(self, request: CountRequest) -> Iterator[CountOutput]:
            for output in super().predict(request):
                yield output
                if request.number > 3:
                    raise ValueError("out of numbers")

    refuses(counting(load=Failing), "the long request failed: the worker failed on this request")


def test_a_backend_that_blocks_the_event_loop_is_refused() -> None:
    async def execute(self: Any, request: CountRequest) -> AsyncGenerator[Any, None]:
        clock = RequestClock()
        for i in range(request.number):
            time.sleep(0.5 if request.number > 3 else 0)  # noqa: ASYNC251 - the rule is about this
            yield Output(CountOutput(i=i))
            await asyncio.sleep(1.5 * (i == 3))
        for event in clock.complete(self, {}, tokens_out=request.number):
            yield event

    refuses(counting(load=async_backend(execute)), "execute blocked the event loop for")


class Unstoppable(Counter):
    """Starts a thread for each long request that continues after a disconnect."""

    busy_s = 5.0

    async def execute(self, request: CountRequest) -> AsyncGenerator[Any, None]:
        clock = RequestClock()
        yield Progress(step=0, total=1)
        if request.number > 3:
            await asyncio.to_thread(self._spin)
        for event in clock.complete(self, {}, tokens_out=0):
            yield event

    def _spin(self) -> None:
        deadline = time.monotonic() + self.busy_s
        while time.monotonic() < deadline:
            msgspec.json.decode(b"[1, 2, 3]")


def test_an_engine_that_computes_on_after_a_disconnect_is_refused() -> None:
    refuses(counting(load=Unstoppable), "not idle 0.5 s after a disconnect: the process uses", idle_within_s=0.5)


def test_an_engine_that_still_holds_the_request_after_a_disconnect_is_refused() -> None:
    class Holding(Counter):
        def engine_requests(self) -> int:
            return 7

    refuses(counting(load=Holding), "after a disconnect: engine_requests() is 7", idle_within_s=0.2)


def test_a_thread_that_waits_for_the_cancelled_request_fails_the_next_one() -> None:
    class Sleeping(Counter):
        def predict(self, request: CountRequest) -> Iterator[CountOutput]:
            yield CountOutput()
            if request.number > 3:
                time.sleep(4)

        def engine_requests(self) -> int:
            return 0

    refuses(counting(load=Sleeping), "a request after a disconnect was not done within", idle_within_s=0.5)


def test_an_error_or_a_wait_in_the_clean_up_is_refused() -> None:
    def cleaning(clean_up: Callable[[], Any]) -> Callable[[LoadContext], Any]:
        async def execute(self: Any, request: CountRequest) -> AsyncGenerator[Any, None]:
            clock = RequestClock()
            try:
                for i in range(request.number):
                    await asyncio.sleep(0.001)
                    yield Output(CountOutput(i=i))
            finally:
                if request.number > 3:
                    await clean_up()
            for event in clock.complete(self, {}, tokens_out=0):
                yield event

        return async_backend(execute)

    async def fail() -> None:
        raise KeyError("handle")

    refuses(counting(load=cleaning(fail)), "execute raised InternalError after a disconnect")
    waiting = counting(load=cleaning(lambda: asyncio.sleep(2)))
    refuses(waiting, "execute did not return within 0.3 s after a disconnect", idle_within_s=0.3)
