"""A deadline for calls that cannot be cancelled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def call_with_timeout(seconds: float, function: Callable[[], T]) -> T:
    """The result of `function`, or its exception. Raises `TimeoutError` after `seconds`; the call then goes on in its
    daemon thread, and its result is dropped."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(function())
        except BaseException as exc:
            outcome.set_exception(exc)

    threading.Thread(target=run, name="rbee-serve-call", daemon=True).start()
    return outcome.result(seconds)
