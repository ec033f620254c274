"""Cancellations of the current task, as opposed to those of a call that it awaits."""

from __future__ import annotations

import asyncio


def is_own_cancellation(error: BaseException) -> bool:
    """Whether `error` cancels the current task. If not, it is a failure: Ray Serve raises `CancelledError` also for a
    call whose other end was cancelled, and so does a future that was cancelled elsewhere."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
