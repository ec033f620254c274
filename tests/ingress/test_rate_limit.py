"""The limits of a key, without a key."""

from __future__ import annotations

import pickle
import random
from contextlib import ExitStack, suppress

import pytest

from rbee_serve.errors import RateLimited
from rbee_serve.ingress.rate_limit import RequestLimit


class Clock:
    """Seconds that pass when a test lets them."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_without_limits_every_request_is_admitted() -> None:
    limit = RequestLimit(None, None)
    with ExitStack() as open_requests:
        for _ in range(1000):
            open_requests.enter_context(limit)
        assert limit.ongoing == 1000
    assert (limit.ongoing, limit.admitted, limit.refused) == (0, 1000, 0)


def test_one_request_too_many_at_once_is_refused_until_another_is_done() -> None:
    limit = RequestLimit(2, None)
    with limit:
        with limit:
            with pytest.raises(RateLimited, match="2 requests at once") as raised, limit:
                pass
            assert raised.value.retry_after_s == 1
            assert pickle.loads(pickle.dumps(raised.value)).message == raised.value.message
            assert limit.ongoing == 2
        with limit:
            pass
    assert (limit.ongoing, limit.admitted, limit.refused) == (0, 3, 1)


def test_an_exception_frees_the_slot() -> None:
    limit = RequestLimit(1, None)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt), limit:
            raise KeyboardInterrupt
    assert limit.ongoing == 0


def test_one_request_too_many_in_a_minute_is_refused_with_the_time_to_wait() -> None:
    clock = Clock()
    limit = RequestLimit(None, 3, clock)
    for second in (0.0, 10.0, 20.0):
        clock.now = 1000.0 + second
        with limit:
            pass
    for second, wait_s in ((20.0, 40), (30.5, 30), (59.9, 1)):
        clock.now = 1000.0 + second
        with pytest.raises(RateLimited, match=f"wait {wait_s} s") as raised, limit:
            pass
        assert raised.value.retry_after_s == wait_s
    clock.now = 1060.0
    with limit:
        pass
    with pytest.raises(RateLimited) as raised, limit:
        pass
    assert raised.value.retry_after_s == 10


def test_no_sixty_seconds_have_more_requests_than_allowed() -> None:
    clock, chance = Clock(), random.Random(7)
    limit = RequestLimit(None, 20, clock)
    admitted: list[float] = []
    for _ in range(5000):
        clock.now += chance.expovariate(1)
        with suppress(RateLimited), limit:
            admitted.append(clock.now)
    assert all(later - earlier >= 60 for earlier, later in zip(admitted, admitted[20:], strict=False))
    assert len(admitted) > 0.95 * 20 * (clock.now - 1000) / 60


def test_a_request_that_is_refused_does_not_count_for_the_minute() -> None:
    clock = Clock()
    limit = RequestLimit(1, 2, clock)
    with limit:
        for _ in range(5):
            with pytest.raises(RateLimited, match="at once"), limit:
                pass
    with limit:
        pass
    with pytest.raises(RateLimited, match="in a minute"), limit:
        pass
